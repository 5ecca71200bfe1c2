//! The HTTP requests that a server accepts: none when HTTP is off, none for another host, and none
//! by which a page of another origin would change something.

use crate::support::http::{Http, Response, get};
use crate::support::{capstead, refused_start, scratch, serve, serve_command, serve_with};

fn status(address: &str, raw: &str) -> (u16, String) {
    let mut connection = Http::connect(address);
    connection.send(raw.as_bytes());
    let response = connection.answer(raw.split(' ').next().expect("there is a method"));
    (response.status, response.body)
}

fn named<'a>(response: &'a Response, name: &str) -> Vec<&'a str> {
    let headers = response.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
    headers.map(|(_, value)| value.as_str()).collect()
}

fn increment(headers: &str) -> String {
    format!("POST /counter/x/increment HTTP/1.1\r\n{headers}\r\n")
}

#[test]
fn http_that_is_off_listens_nowhere() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--http", "off"]);
    assert_eq!(served.announced.http, "");
    // One line for each TCP socket that listens: for Cap'n Proto on each host, and for the metrics.
    let net = std::fs::read_to_string(format!("/proc/{}/net/tcp", served.pid())).unwrap();
    let fds = std::fs::read_dir(format!("/proc/{}/fd", served.pid())).unwrap();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    let links: Vec<String> = links.map(|link| link.display().to_string()).collect();
    let listens = net.lines().skip(1).filter(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[3] == "0A" && links.contains(&format!("socket:[{}]", fields[9]))
    });
    let hosts: usize = std::env::var("CAPSTEAD_TEST_HOSTS").map_or(1, |n| n.parse().unwrap());
    assert_eq!(listens.count(), hosts + 1);
    let (code, _, _) = served.stop();
    assert_eq!(code, Some(0));
}

#[test]
fn an_address_that_everybody_reaches_is_told_at_the_start() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--http", "0.0.0.0:0"]);
    let port = served.announced.http.rsplit(':').next().unwrap().to_owned();
    let address = format!("127.0.0.1:{port}");
    assert_eq!(status(&address, &increment("Host: localhost\r\n")).0, 200);
    // A page whose own name leads here is no more welcome than where nothing else is listened to.
    let rebound = "Host: evil.example\r\nOrigin: http://evil.example\r\n";
    assert_eq!(status(&address, &increment(rebound)).0, 421);
    assert_eq!(get(&address, "/counter/x").body, "1");
    let (_, _, log) = served.stop();
    assert!(log.contains("whoever reaches this address may use every object"), "{log}");

    let (_folder, data) = scratch();
    let (_, _, log) = serve(&data).stop();
    assert!(!log.contains("whoever reaches this address"), "{log}");
}

#[test]
fn a_page_of_another_origin_changes_nothing() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--http-origin", "https://app.example"]);
    let address = &served.announced.http;
    for headers in [
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\nOrigin: http://localhost:1\r\n",
    ] {
        let request = increment(&format!("Host: {address}\r\n{headers}"));
        let (status, body) = status(address, &request);
        assert!(status == 403 && body.contains("--http-origin"), "{headers}: {status} {body}");
    }
    for (at, headers) in [
        String::new(),
        format!("Origin: http://{address}\r\n"),
        "Sec-Fetch-Site: same-origin\r\n".to_owned(),
        "Sec-Fetch-Site: cross-site\r\nOrigin: https://app.example\r\n".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let request = increment(&format!("Host: {address}\r\n{headers}"));
        assert_eq!(status(address, &request), (200, (at + 1).to_string()), "{headers}");
    }
    let read =
        format!("GET /counter/x HTTP/1.1\r\nHost: {address}\r\nSec-Fetch-Site: cross-site\r\n\r\n");
    assert_eq!(status(address, &read), (200, "4".to_owned()));
}

#[test]
fn a_name_that_was_made_to_lead_here_is_not_served() {
    for flags in [&[][..], &["--http-host", "app.example"]] {
        names_are_looked_at(flags);
    }
}

/// Names are always checked on an address of this machine; a flag adds to the accepted names.
fn names_are_looked_at(flags: &[&str]) {
    let (_folder, data) = scratch();
    let served = serve_with(&data, flags);
    let numbers = served.announced.metrics.clone().expect("the numbers are served");
    for (address, path) in [(&served.announced.http, "/counter/x"), (&numbers, "/metrics")] {
        let ask = |headers: &str| {
            status(address, &format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n"))
        };
        for host in ["evil.example", "127.0.0.1.evil.example:80", "192.0.2.1"] {
            let (status, body) = ask(&format!("Host: {host}\r\n"));
            assert!(status == 421 && body.contains("--http-host"), "{host}: {status} {body}");
        }
        for host in ["localhost:1", "127.0.0.1", "[::1]:9"] {
            assert_eq!(ask(&format!("Host: {host}\r\n")).0, 200, "{host}");
        }
        let expected = if flags.is_empty() { 421 } else { 200 };
        assert_eq!(ask("Host: app.example\r\n").0, expected, "{flags:?}");
        for headers in ["", "Host: localhost\r\nHost: localhost\r\n", "Host: a b\r\n"] {
            assert_eq!(ask(headers).0, 400, "{headers:?}");
        }
        let old = format!("GET {path} HTTP/1.0\r\n\r\n");
        assert_eq!(status(address, &old).0, 200, "HTTP/1.0 names no host");
        let absolute = format!("GET http://evil.example{path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(status(address, &absolute).0, 421);
    }
    assert_eq!(get(&served.announced.http, "/counter/x").body, "0");
}

#[test]
fn what_is_no_address_no_origin_and_no_host_is_said() {
    for (flag, value, words) in [
        ("--http", "on", "or off"),
        ("--http", "", "value"),
        ("--http-origin", "app.example", "no origin"),
        ("--http-host", "app.example:80", "without a port"),
    ] {
        let (_folder, data) = scratch();
        let mut command = capstead(["serve", "--listen", "127.0.0.1:0"]);
        if flag != "--http" {
            command.args(["--http", "127.0.0.1:0"]);
        }
        command.arg("--data").arg(&data).args([flag, value]);
        let (code, error) = refused_start(command);
        assert!(code.is_some_and(|code| code == 1 || code == 2), "{code:?} {error}");
        assert!(error.contains(words), "{flag} {value}: {error}");
        assert!(!data.exists(), "nothing is made");
    }
}

/// A client that has sent everything closes that side of the connection, and waits.
#[test]
fn a_client_that_closes_its_side_is_answered() {
    use std::io::{Read, Write};
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--commit-delay", "100"]);
    let mut stream = std::net::TcpStream::connect(&served.announced.http).unwrap();
    stream.set_read_timeout(Some(crate::support::DEADLINE)).unwrap();
    stream.write_all(increment("Host: localhost\r\n").as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n1"), "{answer:?}");
}

/// A page of an allowed origin asks first, and can read answers and errors alike; other pages learn
/// nothing.
#[test]
fn a_page_of_an_allowed_origin_asks_first_and_reads_answers() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--http-origin", "https://app.example"]);
    let address = &served.announced.http;
    let ask = |request: &str, headers: &str| {
        let mut connection = Http::connect(address);
        connection
            .send(format!("{request} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n").as_bytes());
        connection.answer(request.split(' ').next().unwrap())
    };
    let preflight = "Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-a, content-type\r\n";
    let page = "Origin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n";

    let answer = ask("OPTIONS /counter/x/increment", &format!("{page}{preflight}"));
    assert_eq!((answer.status, &*answer.body), (204, ""));
    for (name, value) in [
        ("access-control-allow-origin", "https://app.example"),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", "x-a, content-type"),
        ("access-control-max-age", "600"),
    ] {
        assert_eq!(named(&answer, name), [value], "{name}");
    }
    let vary = named(&answer, "vary").join(", ");
    assert!(vary.contains("origin") && vary.contains("access-control-request-headers"), "{vary}");
    assert!(named(&answer, "access-control-allow-credentials").is_empty());

    for (request, status, varies) in [
        ("POST /counter/x/increment", 200, &["origin"][..]),
        ("GET /counter/x", 200, &["origin"]),
        // Errors come as text or as JSON.
        ("GET /nothing/x", 404, &["accept", "origin"]),
        ("GET /nothing", 404, &["accept", "origin"]),
    ] {
        let answer = ask(request, page);
        assert_eq!(answer.status, status, "{request}");
        assert_eq!(named(&answer, "access-control-allow-origin"), ["https://app.example"]);
        assert_eq!(named(&answer, "vary"), varies, "{request}");
    }
    assert_eq!(get(address, "/counter/x").body, "1", "a preflight reaches no object");

    for page in ["Origin: https://evil.example\r\n", "Origin: null\r\n", ""] {
        let answers = [
            ask("OPTIONS /counter/x", &format!("{page}{preflight}")),
            ask("GET /counter/x", page),
            ask("POST /counter/x/increment", &format!("{page}Sec-Fetch-Site: cross-site\r\n")),
        ];
        for answer in answers {
            assert!(named(&answer, "access-control-allow-origin").is_empty(), "{page}");
        }
    }
    let elsewhere = format!("GET /counter/x HTTP/1.1\r\nHost: evil.example\r\n{page}\r\n");
    let mut connection = Http::connect(address);
    connection.send(elsewhere.as_bytes());
    let answer = connection.answer("GET");
    assert_eq!(answer.status, 421);
    assert_eq!(named(&answer, "access-control-allow-origin"), ["https://app.example"]);
    // A method that is not known to HTTP/1.1 may change something.
    assert_eq!(ask("QUERY /counter/x", "Origin: https://evil.example\r\n").status, 403);
}

// Flags with these values admit no page and no request, and the server used not to report that.
#[test]
fn what_would_let_nobody_in_is_refused_at_the_start() {
    for (flag, value, says) in [
        ("--http-origin", "https://*.example", "is no origin"),
        ("--http-origin", "https://app.example:99999", "its port is none"),
        ("--http-host", "*.example", "without *"),
    ] {
        let (_folder, data) = scratch();
        let (code, said) = refused_start(serve_command(&data, &[flag, value]));
        assert!(code == Some(2) && said.contains(says) && said.contains(value), "{said}");
        assert!(!data.exists(), "{flag} {value}: nothing is made");
    }
}

/// A server that admits no other origin sends no headers about origins.
#[test]
fn without_other_origins_answers_say_nothing_of_them() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    let mut connection = Http::connect(&served.announced.http);
    connection
        .send(b"GET /counter/x HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n");
    let answer = connection.answer("GET");
    assert_eq!(answer.status, 200);
    for name in ["vary", "access-control-allow-origin"] {
        assert!(named(&answer, name).is_empty(), "{name}");
    }
}
