//! The manual page: all commands in one, so that `man anomaly` answers everything.

use std::io;

use clap::Command;
use clap_mangen::Man;

/// What the arguments do not say.
const REST: &str = r#".SH FILES
.TP
\fI/etc/anomaly/anomaly.toml\fR
The configuration. \fBanomaly config default\fR prints every key with its default, unit and range.
.TP
\fI/var/lib/anomaly/state.db\fR
Bans, offences, what was learned, and where reading stopped (SQLite).
.TP
\fI/var/log/anomaly/audit.jsonl\fR, \fI/var/log/anomaly/snapshots.log\fR
Every decision and failure; the state of the firewall at bans and unbans.
.TP
\fI/run/anomaly/anomaly.sock\fR
What the commands talk to; its group may use it.
.SH ENVIRONMENT
.TP
\fBANOMALY_SECTION__KEY\fR
Overrides a key of the configuration: \fBANOMALY_BANS__DURATIONS="10m,1h,permanent"\fR.
.TP
\fBRUST_LOG\fR
What \fBrun\fR logs to standard error (default: \fBinfo\fR).
.TP
\fBNO_COLOR\fR
No colours, also on a terminal.
.SH EXIT STATUS
.TP
\fB0\fR
Done.
.TP
\fB1\fR
Failed, or refused; one line on standard error says why.
.TP
\fB2\fR
Wrong usage or bad configuration.
.SH EXAMPLES
.TP
\fBanomaly replay /var/log/nginx/access.json*\fR
Who would have been banned, and why. Enforces nothing.
.TP
\fBanomaly top \-\-watch\fR
What goes on now.
.TP
\fBanomaly explain 203.0.113.10\fR
Why that address is banned, or was.
.TP
\fBanomaly ban 203.0.113.0/24 \-\-for 2h \-\-reason "scrapes the shop"\fR
Bans exactly this prefix.
.TP
\fBanomaly unban 203.0.113.10\fR
Lets it in again.
.TP
\fBanomaly off\fR
Locked out, or in doubt: stops dropping at once, also without a daemon.
"#;

/// The page as roff.
///
/// # Errors
/// Never, as long as memory can be written to.
pub fn page(mut command: Command) -> io::Result<String> {
    command.build();
    let mut text = render(&Man::new(command.clone()).section("8"), |man, out| {
        man.render_title(out)?;
        man.render_name_section(out)?;
        man.render_synopsis_section(out)?;
        man.render_description_section(out)?;
        man.render_options_section(out)
    })?;
    text += ".SH COMMANDS\n";
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        text += &chapter(sub)?;
        for deeper in sub.get_subcommands().filter(|deeper| deeper.get_name() != "help") {
            text += &chapter(deeper)?;
        }
    }
    Ok(text + REST)
}

/// One command: how it is called, what it does, its own options.
fn chapter(command: &Command) -> io::Result<String> {
    let man = Man::new(command.clone());
    let name = command.get_bin_name().unwrap_or(command.get_name()).replace('-', "\\-");
    let synopsis = render(&man, |man, out| man.render_synopsis_section(out))?;
    let description = render(&man, |man, out| man.render_description_section(out))?;
    let mut text = format!(".SS {name}\n{}.PP\n{}", body(&synopsis), body(&description));
    let own = |arg: &&clap::Arg| !arg.is_global_set() && arg.get_id() != "help" && !arg.is_hide_set();
    if command.get_arguments().any(|arg| own(&arg)) {
        let mut options = command.clone();
        for arg in ["config", "help"] {
            options = options.mut_args(|a| if a.get_id() == arg { a.hide(true) } else { a });
        }
        text += body(&render(&Man::new(options), |man, out| man.render_options_section(out))?);
    }
    Ok(text)
}

fn render(man: &Man, section: impl FnOnce(&Man, &mut dyn io::Write) -> io::Result<()>) -> io::Result<String> {
    let mut text = Vec::new();
    section(man, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A section without its heading and what stands before it.
fn body(section: &str) -> &str {
    let heading = section.find(".SH ").unwrap_or(0);
    section[heading..].split_once('\n').map_or("", |(_, body)| body)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn every_command_and_every_option_is_in_the_manual() {
        let text = page(Cli::command()).unwrap();
        let mut command = Cli::command();
        command.build();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            assert!(text.contains(&format!(".SS anomaly {}\n", sub.get_name())), "{}", sub.get_name());
            for option in sub.get_arguments().filter_map(|arg| arg.get_long()) {
                assert!(text.contains(&format!("\\-\\-{}", option.replace('-', "\\-"))), "--{option}");
            }
        }
        assert!(text.contains(".SS anomaly config check\n") && text.contains(".SH EXIT STATUS"));
    }
}
