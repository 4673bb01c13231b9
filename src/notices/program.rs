//! How a program is asked: its output, if it comes in time.
//!
//! Invariant: a program that hangs is killed when the time is over; its output is read to 64 KiB. Deliberately not
//! here: which program.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

pub const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_OUTPUT: u64 = 64 << 10;

/// Variables that are set for a program, or taken away from it.
pub type Environment<'a> = [(&'a str, Option<&'a str>)];

/// What `program` writes on stdout, with `environment` in the place of ours; `Err` says in a clause what went wrong,
/// with the first line that it wrote on stderr.
pub fn output(program: &str, arguments: &[&str], environment: &Environment<'_>) -> Result<String, String> {
    output_within(TIMEOUT, program, arguments, environment)
}

fn output_within(
    timeout: Duration,
    program: &str,
    arguments: &[&str],
    environment: &Environment<'_>,
) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("running {program}: {e}"))?;
    runtime.block_on(async {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child = command.spawn().map_err(|e| format!("running {program}: {e}"))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let read = async {
            // Both at once, so that it never waits for a reader.
            let (output, complaint) = tokio::join!(read(stdout), read(stderr));
            let output = output?;
            if output.len() as u64 > MAX_OUTPUT {
                return Ok((output, None));
            }
            let status = child.wait().await?;
            Ok::<_, std::io::Error>((output, Some((status, complaint.unwrap_or_default()))))
        };
        match tokio::time::timeout(timeout, read).await {
            Err(_) => Err(format!("{program} gives no answer in time")),
            Ok(Err(e)) => Err(format!("running {program}: {e}")),
            Ok(Ok((_, None))) => Err(format!("the answer of {program} is larger than 64 KiB")),
            Ok(Ok((_, Some((status, complaint))))) if !status.success() => {
                let complaint = String::from_utf8_lossy(&complaint);
                let said = complaint.lines().next().map_or_else(String::new, |line| format!(": {}", beginning(line)));
                Err(format!("{program} failed with {status}{said}"))
            }
            Ok(Ok((output, Some(_)))) => {
                String::from_utf8(output).map_err(|_| format!("the answer of {program} is not UTF-8"))
            }
        }
    })
}

/// A stream to its end, or a byte more than is taken.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// As much of a line as a log takes.
fn beginning(line: &str) -> String {
    line.chars().take(200).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shell_within(timeout: Duration, script: &str) -> Result<String, String> {
        output_within(timeout, "/bin/sh", &["-c", script], &[("WORD", Some("hello"))])
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
        assert!(shell("echo hello; exit 3").unwrap_err().ends_with("exit status: 3"));
        assert!(shell("echo no such job >&2; exit 1").unwrap_err().ends_with("exit status: 1: no such job"));
        assert!(shell_that_hangs("exec sleep 60").unwrap_err().contains("no answer in time"));
        assert!(shell_that_hangs("exec >&-; exec sleep 60").unwrap_err().contains("no answer in time"));
        assert!(shell("exec yes").unwrap_err().contains("larger than 64 KiB"));
        assert!(output("/nonexistent/squeue", &[], &[]).unwrap_err().contains("/nonexistent/squeue"));
    }
}
