//! What once ended the process, or held its thread for ever, each by its name.
