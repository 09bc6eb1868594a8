//! "Did you mean": the nearest of a set of names.

/// The candidate nearest to `word`, if it is near enough to be a likely slip.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    ranked(word, candidates).first().filter(|(score, _)| *score >= 0.7).map(|(_, name)| *name)
}

/// Up to `most` candidates, nearest first, however far.
pub fn nearest_few<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>, most: usize) -> Vec<&'a str> {
    ranked(word, candidates).into_iter().take(most).map(|(_, name)| name).collect()
}

fn ranked<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<(f64, &'a str)> {
    let word = word.to_lowercase();
    let mut scored: Vec<_> =
        candidates.into_iter().map(|name| (strsim::jaro_winkler(&word, &name.to_lowercase()), name)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.dedup_by(|a, b| a.1 == b.1);
    scored
}

/// `did you mean `x`?` when a candidate is near, else the list of what is known (at most eight names).
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(name) = nearest(word, candidates.clone()) {
        return format!("did you mean `{name}`?");
    }
    let names: Vec<_> = candidates.into_iter().take(8).map(|name| format!("`{name}`")).collect();
    format!("known: {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_nonsense_lists_what_is_known() {
        let keys = ["learning_rate", "lora_alpha", "target_modules"];
        assert_eq!(nearest("target_module", keys), Some("target_modules"));
        assert_eq!(nearest("zzz", keys), None);
        assert_eq!(did_you_mean("lora_aplha", keys), "did you mean `lora_alpha`?");
        assert!(did_you_mean("zzz", keys).starts_with("known: `learning_rate`"));
    }
}
