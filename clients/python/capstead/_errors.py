"""The words with which Capstead's errors begin. A test compares them with those for Rust in `client/src/reason.rs`."""

import enum

_REMOTE = "remote exception: "


class Reason(enum.StrEnum):
    """The case in which a call failed. For each, docs/errors.md says what to do, and what is then true."""

    NOT_BEGUN = "not-begun"
    REVOKED = "revoked"
    EXPIRED = "expired"
    CONFLICT = "conflict"
    DEADLOCK = "deadlock"
    OVERLOADED = "overloaded"

    UNKNOWN = "unknown"
    REQUEST_ID_REUSED = "request-id-reused"
    REQUEST_ID_LENGTH = "request-id-length"
    TOO_MANY_REQUEST_IDS = "too-many-request-ids"
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
    """The reason that a call's error begins with, if any, no matter how often the error was passed on."""
    word, found, _ = _said(error).partition(": ")
    return Reason(word) if found and word in Reason._value2member_map_ else None


def described(error: BaseException) -> str:
    """The error in one line, for people. Errors of pycapnp have more lines, about their way through C++."""
    lines = _said(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _said(error: BaseException) -> str:
    text: str = getattr(error, "description", None) or str(error)
    while text.startswith(_REMOTE):
        text = text.removeprefix(_REMOTE)
    return text
