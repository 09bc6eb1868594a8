//! No text makes the loader panic.

use pleach_spec::load;
use proptest::prelude::*;

use crate::JOB;

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}", argument in "\\PC{0,40}") {
        let _ = load(&text, "any", &[]);
        let _ = load(JOB, "any", &[argument]);
    }

    #[test]
    fn arbitrary_yaml_like_text_never_panics(text in "[-a-z0-9:{}\\[\\],&*!|>'\"#%@`.\\n \\t~?<]{0,200}") {
        let _ = load(&text, "any", &[]);
    }

    #[test]
    fn a_damaged_job_never_panics_and_is_never_an_internal_error(at in 0..JOB.len(), with in "[ -~\\n]{0,3}", cut in 0usize..4) {
        let end = (at + cut).min(JOB.len());
        let text = format!("{}{with}{}", &JOB[..at], &JOB[end..]);
        if let Err(error) = load(&text, "any", &[]) {
            prop_assert_eq!(error.kind(), pleach_base::Kind::Invalid, "{:?}", error);
        }
    }

    #[test]
    fn whatever_an_override_sets_is_read_or_refused(path in "spec(\\.[a-z_]{1,9}){0,3}", value in "[ -~]{0,12}") {
        let _ = load(JOB, "any", &[format!("{path}={value}")]);
    }
}
