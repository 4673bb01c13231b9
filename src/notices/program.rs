//! How a program is asked: its output, if it comes in time.
//!
//! Invariant: a program that hangs is killed when the time is over; its output is read to 64 KiB. Deliberately not
//! here: which program.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

pub const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_OUTPUT: u64 = 64 << 10;

/// What `program` writes on stdout, with `environment` added to ours; `Err` says in a clause what went wrong.
pub fn output(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<String, String> {
    output_within(TIMEOUT, program, arguments, environment)
}

fn output_within(
    timeout: Duration,
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("running {program}: {e}"))?;
    runtime.block_on(async {
        let mut child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("running {program}: {e}"))?;
        let read = async {
            let mut output = Vec::new();
            if let Some(stdout) = child.stdout.take() {
                stdout.take(MAX_OUTPUT + 1).read_to_end(&mut output).await?;
            }
            if output.len() as u64 > MAX_OUTPUT {
                return Ok((output, None));
            }
            child.wait().await.map(|status| (output, Some(status)))
        };
        match tokio::time::timeout(timeout, read).await {
            Err(_) => Err(format!("{program} gives no answer in time")),
            Ok(Err(e)) => Err(format!("running {program}: {e}")),
            Ok(Ok((_, None))) => Err(format!("the answer of {program} is larger than 64 KiB")),
            Ok(Ok((_, Some(status)))) if !status.success() => Err(format!("{program} failed with {status}")),
            Ok(Ok((output, Some(_)))) => {
                String::from_utf8(output).map_err(|_| format!("the answer of {program} is not UTF-8"))
            }
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shell_within(timeout: Duration, script: &str) -> Result<String, String> {
        output_within(timeout, "/bin/sh", &["-c", script], &[("WORD", "hello")])
    }

    /// Time enough for a shell on a machine that has much to do.
    fn shell(script: &str) -> Result<String, String> {
        shell_within(Duration::from_secs(60), script)
    }

    fn shell_that_hangs(script: &str) -> Result<String, String> {
        shell_within(Duration::from_millis(300), script)
    }

    #[test]
    fn a_program_that_fails_hangs_or_says_too_much_is_an_error() {
        assert_eq!(shell("echo $WORD").unwrap(), "hello\n");
        assert!(shell("echo hello; exit 3").unwrap_err().contains("exit status: 3"));
        assert!(shell_that_hangs("exec sleep 60").unwrap_err().contains("no answer in time"));
        assert!(shell_that_hangs("exec >&-; exec sleep 60").unwrap_err().contains("no answer in time"));
        assert!(shell("exec yes").unwrap_err().contains("larger than 64 KiB"));
        assert!(output("/nonexistent/squeue", &[], &[]).unwrap_err().contains("/nonexistent/squeue"));
    }
}
