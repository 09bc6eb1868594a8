//! Other people's programs against Pleach.
