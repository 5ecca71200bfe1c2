//! Generates the code of the internal schemas.
fn main() {}
