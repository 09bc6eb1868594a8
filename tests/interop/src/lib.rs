//! Other people's programs against Pleach: PEFT opens what it trained, boto3 reads its checkpoints, a generated Python
//! client speaks its API. All of it is in `tests/it` and `py`; `cargo xtask test interop` runs it.
