//! Heads of requests and responses in the HTTP schema, and back.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};

use crate::error::{Result, failed, unimplemented};
use crate::schema::http_capnp::{HttpMethod, http_header, http_request, http_response};

pub(crate) fn read_request<B>(request: http_request::Reader<'_>, body: B) -> Result<Request<B>> {
    let method = read_method(request.get_method()?)?;
    let url = request.get_url()?.to_str()?;
    let mut read = Request::new(body);
    *read.method_mut() = method;
    *read.uri_mut() =
        url.parse().map_err(|error| failed(format!("a malformed request: {error}")))?;
    *read.headers_mut() = read_headers(request.get_headers()?)?;
    Ok(read)
}

pub(crate) fn write_request(
    request: &http::request::Parts,
    url: &str,
    body_bytes: Option<u64>,
    mut to: http_request::Builder<'_>,
) -> Result<()> {
    to.set_method(write_method(&request.method)?);
    to.set_url(url);
    write_headers(&request.headers, to.reborrow().init_headers(request.headers.len() as u32))?;
    match body_bytes {
        Some(bytes) => to.get_body_size().set_fixed(bytes),
        None => to.get_body_size().set_unknown(()),
    }
    Ok(())
}

/// The head of a response whose body has so many bytes, if that is known.
pub(crate) fn write_response<B>(
    response: &Response<B>,
    body_bytes: Option<u64>,
    mut to: http_response::Builder<'_>,
) -> Result<()> {
    to.set_status_code(response.status().as_u16());
    write_headers(response.headers(), to.reborrow().init_headers(response.headers().len() as u32))?;
    match body_bytes {
        Some(bytes) => to.get_body_size().set_fixed(bytes),
        None => to.get_body_size().set_unknown(()),
    }
    Ok(())
}

/// The head of a response that an object gave.
pub(crate) fn read_response(response: http_response::Reader<'_>) -> Result<Response<()>> {
    let built = Response::builder().status(response.get_status_code());
    let mut head =
        built.body(()).map_err(|error| failed(format!("a malformed response: {error}")))?;
    *head.headers_mut() = read_headers(response.get_headers()?)?;
    Ok(head)
}

pub(crate) fn read_headers(
    headers: capnp::struct_list::Reader<'_, http_header::Owned>,
) -> Result<HeaderMap> {
    let mut read = HeaderMap::with_capacity(headers.len() as usize);
    for header in headers {
        let (name, value) = read_header(header)?;
        let full = |_| failed("there are too many headers");
        read.try_append(name, value).map_err(full)?;
    }
    Ok(read)
}

/// # Errors
/// When a value isn't UTF-8.
pub(crate) fn write_headers(
    headers: &HeaderMap,
    mut to: capnp::struct_list::Builder<'_, http_header::Owned>,
) -> Result<()> {
    for (at, (name, value)) in (0..).zip(headers) {
        write_header(name, value, to.reborrow().get(at))?;
    }
    Ok(())
}

/// # Errors
/// When the value isn't UTF-8, and so no text of Cap'n Proto.
fn write_header(
    name: &HeaderName,
    value: &HeaderValue,
    to: http_header::Builder<'_>,
) -> Result<()> {
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| failed(format!("the value of the header {name} is not UTF-8")))?;
    let mut pair = to.init_uncommon();
    pair.set_name(name.as_str());
    pair.set_value(text);
    Ok(())
}

fn read_header(header: http_header::Reader<'_>) -> Result<(HeaderName, HeaderValue)> {
    let malformed = |error: &dyn fmt::Display| failed(format!("a malformed header: {error}"));
    let named = |name: &[u8]| HeaderName::from_bytes(name).map_err(|error| malformed(&error));
    let (name, value) = match header.which()? {
        http_header::Uncommon(pair) => {
            let pair = pair?;
            (named(pair.get_name()?.as_bytes())?, pair.get_value()?)
        }
        http_header::Common(common) => {
            use http_header::common::{CommonValue, Value};
            let name = named(common_name(common.get_name()?).as_bytes())?;
            match common.which()? {
                Value(value) => (name, value?),
                CommonValue(_) => (name, "gzip, deflate".into()),
            }
        }
    };
    let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|error| malformed(&error))?;
    Ok((name, value))
}

/// `acceptCharset` is `accept-charset`, and so on for all of them.
fn common_name(name: crate::schema::http_capnp::CommonHeaderName) -> String {
    match name {
        crate::schema::http_capnp::CommonHeaderName::WwwAuthenticate => "www-authenticate".into(),
        name => kebab(&format!("{name:?}")),
    }
}

fn kebab(camel: &str) -> String {
    let mut kebab = String::new();
    for (at, letter) in camel.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            kebab.push('-');
        }
        kebab.push(letter.to_ascii_lowercase());
    }
    kebab
}

macro_rules! methods {
    ($($method:ident $constant:ident)+) => {
        fn read_method(method: HttpMethod) -> Result<Method> {
            match method {
                $(HttpMethod::$method => Ok(Method::$constant),)+
                other => Err(unimplemented(format!("the method {other:?} is not supported"))),
            }
        }

        fn write_method(method: &Method) -> Result<HttpMethod> {
            $(if method == Method::$constant { return Ok(HttpMethod::$method); })+
            Err(unimplemented(format!("the method {method} is not supported")))
        }
    };
}

methods! { Get GET Head HEAD Post POST Put PUT Delete DELETE Patch PATCH Options OPTIONS Trace TRACE }
