//! `pleach methods`.

use glob::Pattern;
use pleach_base::{Result, ResultExt, code, suggest};
use pleach_methods::{Card, MethodKind};
use serde_json::{Value, json};

use crate::args::Methods;
use crate::out;

const KINDS: [MethodKind; 5] =
    [MethodKind::Adapter, MethodKind::Router, MethodKind::Strategy, MethodKind::Attention, MethodKind::Compress];

pub(super) fn run(args: &Methods) -> Result<()> {
    let pattern = args.glob.as_deref().unwrap_or("*");
    let pattern = Pattern::new(pattern).or_code(code::BAD_VALUE, || format!("{pattern}: not a pattern"))?;
    let kind = args.kind.as_deref().map(kind).transpose()?;
    let cards: Vec<_> = pleach_methods::methods()
        .map(|method| method.card())
        .filter(|card| pattern.matches(card.name) && kind.is_none_or(|kind| kind == card.kind))
        .collect();
    let values: Value = cards.iter().map(|card| value(card)).collect();
    if cards.is_empty() {
        out::note("no method matches");
    }
    out::emit(args.output.output, &values, || {
        let rows = cards.iter().map(|card| {
            [card.name, &card.kind.to_string(), &status(card), card.peft_type.unwrap_or("-"), card.summary]
                .map(str::to_owned)
        });
        out::table(["NAME", "KIND", "STATUS", "PEFT", "SUMMARY"], rows)
    })
}

fn kind(name: &str) -> Result<MethodKind> {
    KINDS.into_iter().find(|kind| kind.to_string() == name).ok_or_else(|| {
        let names = KINDS.map(|kind| kind.to_string());
        code::BAD_VALUE
            .error(format!("--kind {name}: no such kind"))
            .hint(suggest::did_you_mean(name, names.iter().map(String::as_str).collect::<Vec<_>>()))
    })
}

fn status(card: &Card) -> String {
    format!("{:?}", card.status).to_lowercase()
}

fn value(card: &Card) -> Value {
    json!({
        "name": card.name,
        "kind": card.kind,
        "title": card.title,
        "summary": card.summary,
        "paper": card.paper,
        "status": card.status,
        "roles": card.roles.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "sync": card.sync,
        "mergeable": card.mergeable,
        "peft_type": card.peft_type,
    })
}
