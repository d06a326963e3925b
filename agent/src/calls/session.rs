//! Joins a program's session to a call's streams. Nothing is queued between the two bounded channels: who does not read holds the
//! other side up.

use crate::container::chain;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::unfold;
use runtime::{Session, SessionError};
use sync::{CallError, Input, Output, OutputStream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Which streams the client wants.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// There will be input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// The call's answer: the outputs, then the exit code. Dropping it ends the session.
pub fn join(session: Session, input: mpsc::Receiver<Input>, wanted: Wanted) -> OutputStream {
    let Session { input: program, output, exit } = session;
    let pump = AbortOnDropHandle::new(tokio::spawn(pass_on(input, program, wanted.stdin)));
    let state = State { output, exit: Ending::Running(exit), is_silent: false, wanted, _pump: pump };
    unfold(Some(state), async |state| state?.next().await).boxed()
}

/// Input to the program until the client is gone, which the program learns by the drop of its channel. A client without input, and
/// one that has said its last, is there until it lets go of the answer.
async fn pass_on(mut input: mpsc::Receiver<Input>, program: mpsc::Sender<runtime::Input>, stdin: bool) {
    let mut is_over = !stdin;
    while let Some(piece) = input.recv().await {
        let piece = match piece {
            Input::Data(bytes) if !is_over => runtime::Input::Data(bytes),
            Input::End if !is_over => {
                is_over = true;
                runtime::Input::End
            }
            Input::Data(_) | Input::End => continue,
            Input::Resize { columns, rows } => runtime::Input::Resize { columns, rows },
        };
        if program.send(piece).await.is_err() {
            return;
        }
    }
    if is_over {
        std::future::pending().await
    }
}

struct State {
    output: mpsc::Receiver<runtime::Output>,
    exit: Ending,
    is_silent: bool,
    wanted: Wanted,
    _pump: AbortOnDropHandle<()>,
}

enum Ending {
    Running(BoxFuture<'static, Result<i32, SessionError>>),
    Over(Result<i32, SessionError>),
}

impl State {
    async fn next(mut self) -> Option<(Result<Output, CallError>, Option<Self>)> {
        loop {
            let exit = &mut self.exit;
            tokio::select! {
                biased;
                piece = self.output.recv(), if !self.is_silent => match piece {
                    Some(runtime::Output::Stdout(bytes)) if self.wanted.stdout => {
                        return Some((Ok(Output::Stdout(bytes)), Some(self)));
                    }
                    Some(runtime::Output::Stderr(bytes)) if self.wanted.stderr => {
                        return Some((Ok(Output::Stderr(bytes)), Some(self)));
                    }
                    Some(_) => {}
                    None => self.is_silent = true,
                },
                ended = ended(exit), if matches!(exit, Ending::Running(_)) => self.exit = Ending::Over(ended),
                else => break,
            }
        }
        // the code comes last, whichever of the two was first
        match self.exit {
            Ending::Over(Ok(code)) => Some((Ok(Output::Exit(code)), None)),
            Ending::Over(Err(error)) => Some((Err(CallError::Failed(chain(&error))), None)),
            Ending::Running(_) => None,
        }
    }
}

async fn ended(exit: &mut Ending) -> Result<i32, SessionError> {
    match exit {
        Ending::Running(exit) => exit.await,
        Ending::Over(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::FutureExt;
    use tokio::sync::oneshot;

    struct Program {
        input: mpsc::Receiver<runtime::Input>,
        output: mpsc::Sender<runtime::Output>,
        exit: oneshot::Sender<Result<i32, SessionError>>,
    }

    fn program() -> (Session, Program) {
        let (to, input) = mpsc::channel(1);
        let (output, from) = mpsc::channel(1);
        let (exit, told) = oneshot::channel();
        let exit_of = async move { told.await.unwrap() }.boxed();
        (Session { input: to, output: from, exit: exit_of }, Program { input, output, exit })
    }

    const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true };

    #[tokio::test]
    async fn outputs_come_before_the_exit_code() {
        let (session, program) = program();
        let (_client, input) = mpsc::channel(1);
        let answer = join(session, input, ALL);
        program.exit.send(Ok(3)).unwrap();
        tokio::spawn(async move {
            program.output.send(runtime::Output::Stdout("a".into())).await.unwrap();
            program.output.send(runtime::Output::Stderr("b".into())).await.unwrap();
        });
        let told: Vec<Output> = answer.map(Result::unwrap).collect().await;
        assert_eq!(told, [Output::Stdout("a".into()), Output::Stderr("b".into()), Output::Exit(3)]);
    }

    #[tokio::test]
    async fn what_is_not_wanted_is_left_out_and_an_end_without_a_code_is_an_error() {
        let (session, program) = program();
        let (_client, input) = mpsc::channel(1);
        let answer = join(session, input, Wanted { stdout: false, ..ALL });
        tokio::spawn(async move {
            program.output.send(runtime::Output::Stdout("a".into())).await.unwrap();
            program.output.send(runtime::Output::Stderr("b".into())).await.unwrap();
            program.exit.send(Err(SessionError::Ended("killed".into()))).unwrap();
        });
        let told: Vec<_> = answer.collect().await;
        assert_eq!(
            told,
            [Ok(Output::Stderr("b".into())), Err(CallError::Failed("the container ended: killed".into()))]
        );
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_gone_and_one_that_ended_its_input_is_not() {
        for (ends, pieces) in
            [(false, vec![Input::Data("x".into())]), (true, vec![Input::Data("x".into()), Input::End])]
        {
            let (session, mut program) = program();
            let (client, input) = mpsc::channel(1);
            let answer = join(session, input, ALL);
            for piece in pieces {
                client.send(piece).await.unwrap();
            }
            drop(client);
            assert_eq!(program.input.recv().await, Some(runtime::Input::Data(Bytes::from("x"))));
            if ends {
                assert_eq!(program.input.recv().await, Some(runtime::Input::End));
                assert!(program.input.recv().now_or_never().is_none(), "the client still listens");
                drop(answer);
            }
            assert_eq!(program.input.recv().await, None);
        }
    }

    #[tokio::test]
    async fn a_client_without_input_stays_until_it_lets_go() {
        let (session, mut program) = program();
        let (client, input) = mpsc::channel(2);
        let answer = join(session, input, Wanted { stdin: false, ..ALL });
        client.send(Input::Data("not asked for".into())).await.unwrap();
        client.send(Input::Resize { columns: 80, rows: 24 }).await.unwrap();
        drop(client);
        assert_eq!(program.input.recv().await, Some(runtime::Input::Resize { columns: 80, rows: 24 }));
        assert!(program.input.recv().now_or_never().is_none());
        drop(answer);
        assert_eq!(program.input.recv().await, None);
        assert!(program.output.is_closed() || program.output.send(runtime::Output::Stdout("x".into())).await.is_err());
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_holds_the_program_up() {
        let (session, program) = program();
        let (_client, input) = mpsc::channel(1);
        let mut answer = join(session, input, ALL);
        let sent = || program.output.try_send(runtime::Output::Stdout("x".into())).is_ok();
        assert!(sent() && !sent());
        assert!(answer.next().await.is_some());
        assert!(sent() && !sent());
    }
}
