"""The words with which errors of Capstead begin: `client/src/reason.rs` has them for Rust, and a test compares."""

import enum

_REMOTE = "remote exception: "


class Reason(enum.StrEnum):
    """The case in which a call failed. docs/errors.md says of each what to do, and what is true then."""

    NOT_BEGUN = "not-begun"
    REVOKED = "revoked"
    EXPIRED = "expired"
    CONFLICT = "conflict"
    DEADLOCK = "deadlock"
    OVERLOADED = "overloaded"

    UNKNOWN = "unknown"
    REQUEST_ID_REUSED = "request-id-reused"
    REQUEST_ID_LENGTH = "request-id-length"
    REPLY_NOT_STORABLE = "reply-not-storable"
    NOT_REPEATABLE = "not-repeatable"

    TOO_LARGE = "too-large"
    TOO_MANY_CAPABILITIES = "too-many-capabilities"
    TOO_MANY_HOPS = "too-many-hops"
    MALFORMED = "malformed"

    KEY_LENGTH = "key-length"
    VALUE_LENGTH = "value-length"
    BATCH_SIZE = "batch-size"
    OVER_QUOTA = "over-quota"
    LOW_SPACE = "low-space"
    OUTSIDE_TURN = "outside-turn"
    WRONG_TYPE = "wrong-type"
    DAMAGED = "damaged"
    LIVE_CAPABILITY = "live-capability"
    SEALED_ELSEWHERE = "sealed-elsewhere"
    IMPORT_UNFINISHED = "import-unfinished"

    NOT_A_REFERENCE = "not-a-reference"
    NO_SUCH_GRANT = "no-such-grant"
    NOT_ALLOWED = "not-allowed"
    TOO_DEEP = "too-deep"
    TOO_MANY_GRANTS = "too-many-grants"
    TOO_MANY_HOLDERS = "too-many-holders"
    TOO_MANY_METHODS = "too-many-methods"

    UNBOUND = "unbound"
    STORAGE_FAILED = "storage-failed"


def reason_of(error: BaseException) -> Reason | None:
    """The reason of an error of a call, if it begins with one, however far it came."""
    word, found, _ = _said(error).partition(": ")
    return Reason(word) if found and word in Reason._value2member_map_ else None


def described(error: BaseException) -> str:
    """One line for people. Errors of pycapnp have more, about their way through C++."""
    lines = _said(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _said(error: BaseException) -> str:
    text: str = getattr(error, "description", None) or str(error)
    while text.startswith(_REMOTE):
        text = text.removeprefix(_REMOTE)
    return text
