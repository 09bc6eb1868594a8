//! Object storage: blobs, fenced log, retention, the PEFT folder.
