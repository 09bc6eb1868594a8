//! `pleach explain`: the page of an error code, or of a method.

use pleach_base::{Result, code, suggest};

use crate::args::Explain;
use crate::out;

pub(super) fn run(args: &Explain) -> Result<()> {
    if let Some(found) = code::find(&args.name) {
        return out::data(found.page);
    }
    match pleach_methods::methods().find(|method| method.card().name == args.name) {
        Some(method) => out::data(&pleach_methods::explain(method)),
        None => {
            let methods = pleach_methods::methods().map(|method| method.card().name);
            let known: Vec<_> = methods.chain(code::all().map(|code| code.id)).collect();
            Err(code::BAD_VALUE
                .error(format!("{}: neither a method nor an error code", args.name))
                .hint(suggest::did_you_mean(&args.name, known)))
        }
    }
}
