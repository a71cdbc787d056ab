//! How a run that goes on after failures ends: succeeded, or failed with the lists of failed and skipped steps in its cause.

use super::super::limits;
use super::super::states::{Choice, Fail, ResultPath, Rule, State, Succeed, Template, Test, Then};
use super::{Emitter, N, OF_BRANCH, Out, S, all_empty, pass};

impl Emitter<'_, '_> {
    /// The end of a run that goes on after failures: succeeded, or failed with the lists in its cause.
    pub(super) fn verdict(&mut self, out: &mut Out) -> String {
        let fail = self.names.take("run failed");
        out.push((fail.clone(), State::Fail(Fail { error: "StepEngine.StepsFailed", cause_path: "$.cause" })));
        let cause = Template::Object(vec![("cause", Template::expression("States.JsonToString($.o.s)"))]);
        let tell = self.names.take("list failed and skipped steps");
        out.push((tell.clone(), pass(cause, ResultPath::At("$"), Then::Next(fail))));
        let tell = self.tell_what_fits(tell, out);
        let succeed = self.plain("run completed", State::Succeed(Succeed { output_path: None }), out);
        self.choose("did every step complete", all_empty(&OF_BRANCH), succeed, tell, out)
    }

    /// A cause has room for some thousand names. Where there are more, the list of failed steps goes before that of skipped ones, and a
    /// number takes the place of a list that does not fit.
    fn tell_what_fits(&mut self, tell_all: String, out: &mut Out) -> String {
        let room = limits::CAUSE_CHARACTERS - limits::CAUSE_BESIDE_NAMES;
        let lengths = self.shared.labels.iter().map(|label| label.len() + 1);
        if lengths.clone().sum::<usize>() <= room {
            return tell_all;
        }
        let fit = room / lengths.max().unwrap_or(1);
        let mut shorten = |wanted: &str, lists: [(&'static str, &str); 2]| {
            let name = self.names.take(wanted);
            let lists = lists.map(|(field, path)| (field, Template::expression(path))).to_vec();
            out.push((name.clone(), pass(Template::Object(lists), S, Then::Next(tell_all.clone()))));
            name
        };
        let skipped = ("skipped_count", "$.n.skipped");
        let default = shorten("count failed and skipped steps", [("failed_count", "$.n.failed"), skipped]);
        let tell_failed = shorten("list failed steps", [("failed", OF_BRANCH[0]), skipped]);
        let at_most = |variable| Test::AtMost { variable, numeric_less_than_equals: fit };
        let choices = vec![
            Rule { test: at_most("$.n.both"), next: tell_all },
            Rule { test: at_most("$.n.failed"), next: tell_failed },
        ];
        let choice = self.names.take("what fits into the cause");
        out.push((choice.clone(), State::Choice(Choice { choices, default })));
        let [failed, skipped] = OF_BRANCH.map(|path| format!("States.ArrayLength(States.StringSplit({path}, ','))"));
        let both = format!("States.MathAdd({failed}, {skipped})");
        let fields = [("failed", failed), ("skipped", skipped), ("both", both)];
        let fields = fields.map(|(name, length)| (name, Template::Expression(length)));
        let count = self.names.take("how many failed and were skipped");
        out.push((count.clone(), pass(Template::Object(fields.to_vec()), N, Then::Next(choice))));
        count
    }
}
