//! One page that shows jobs and workers. No script; it reloads itself.

use std::fmt::Write;

use crate::actor::Overview;

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=2>\
<title>Pleach</title><style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:72rem}\
table{border-collapse:collapse;width:100%;margin-bottom:2rem}th,td{text-align:left;padding:.3rem .8rem;\
border-bottom:1px solid #ddd}th{font-weight:600}</style><h1>Pleach</h1>";

pub(super) fn render(overview: &Overview) -> String {
    let mut html = HEAD.to_owned();
    let _ = write!(html, "<p>Term {}.</p><h2>Jobs</h2><table>", overview.term);
    html += "<tr><th>Job<th>State<th>Task<th>Step<th>Loss<th>Tokens/s<th>Stored step<th>Why</tr>";
    for (state, job) in &overview.jobs {
        for task in &job.tasks {
            let _ = write!(
                html,
                "<tr><td>{}/{}<td>{}<td>{}<td>{} of {}<td>{:.4}<td>{:.0}<td>{}<td>{}</tr>",
                escaped(&job.tenant),
                escaped(&job.id),
                state.name(),
                escaped(&task.name),
                task.step,
                task.total_steps,
                task.loss,
                task.tokens_per_second,
                task.durable_step,
                escaped(&job.reason),
            );
        }
    }
    html += "</table><h2>Workers</h2><table><tr><th>Worker<th>Host<th>Works on</tr>";
    for worker in &overview.workers {
        let job = worker.job.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string);
        let (id, host) = (escaped(&worker.id.to_string()), escaped(&worker.host));
        let _ = write!(html, "<tr><td>{id}<td>{host}<td>{}</tr>", escaped(&job));
    }
    html + "</table></html>"
}

/// Names and reasons may hold anything that a worker said.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn text_of_others_is_text() {
        assert_eq!(escaped("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
