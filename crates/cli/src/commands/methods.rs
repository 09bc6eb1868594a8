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
    if cards.is_empty() {
        out::note("no method matches");
    }
    if args.families {
        return matrix(args, &cards);
    }
    let values: Value = cards.iter().map(|card| value(card)).collect();
    out::emit(args.output.output, &values, || {
        let rows = cards.iter().map(|card| {
            [card.name, &card.kind.to_string(), &status(card), card.peft_type.unwrap_or("-"), card.summary]
                .map(str::to_owned)
        });
        out::table(["NAME", "KIND", "STATUS", "PEFT", "SUMMARY"], rows)
    })
}

/// On which families the methods work, by planning them on tiny models.
fn matrix(args: &Methods, cards: &[&Card]) -> Result<()> {
    let mut pairs = pleach_methods::pairs()?;
    pairs.retain(|pair| cards.iter().any(|card| card.name == pair.method));
    out::emit(args.output.output, &json!(pairs), || {
        let rows = pairs.iter().map(|pair| {
            let refused = pair.refused.as_deref();
            [pair.method, pair.family, if refused.is_some() { "no" } else { "yes" }, refused.unwrap_or_default()]
                .map(str::to_owned)
        });
        out::table(["METHOD", "FAMILY", "WORKS", "WHY NOT"], rows)
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
