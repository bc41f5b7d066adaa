//! Sessions with a scripted server.

use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

const WAIT: Duration = Duration::from_secs(20);

/// The far end of a session, and what a test types at the near one.
struct Far {
    line: WebSocketStream<DuplexStream>,
    typing: Option<mpsc::Sender<Vec<u8>>>,
    leaving: mpsc::Sender<Leave>,
}

impl Far {
    async fn heard(&mut self) -> Message {
        let heard = tokio::time::timeout(WAIT, self.line.next()).await;
        heard.expect("the client says something in time").expect("it is there").unwrap()
    }

    async fn show(&mut self, text: &str) {
        self.line.send(Message::binary(text.as_bytes().to_vec())).await.unwrap();
    }

    async fn close(&mut self, code: CloseCode, reason: &str) {
        self.line.close(Some(CloseFrame { code, reason: reason.to_owned().into() })).await.unwrap();
    }

    async fn type_in(&self, text: &str) {
        self.typing.as_ref().unwrap().send(text.as_bytes().to_vec()).await.unwrap();
    }
}

/// Runs a session against a script; how it ended, and what was shown.
async fn session<F: Future<Output = Far>>(
    size: fn() -> Option<Size>,
    script: impl FnOnce(Far) -> F,
) -> (End, String) {
    let (near, far) = tokio::io::duplex(4096);
    let (typing, typed) = mpsc::channel(8);
    let (leaving, leave) = mpsc::channel(1);
    let mut console = Console::scripted(typed, leave, size);
    let near = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    let line = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
    let mut shown = Vec::new();
    let (end, _far) = tokio::join!(
        tokio::time::timeout(WAIT, talk(near, &mut console, &mut shown)),
        script(Far { line, typing: Some(typing), leaving })
    );
    (end.expect("the session ends in time").unwrap(), String::from_utf8(shown).unwrap())
}

fn no_size() -> Option<Size> {
    None
}

#[tokio::test]
async fn a_terminal_says_its_size_first_and_the_shells_end_is_a_good_one() {
    let (end, shown) = session(
        || Some((120, 40)),
        async |mut far| {
            let size: serde_json::Value = serde_json::from_str(far.heard().await.to_text().unwrap()).unwrap();
            assert_eq!(size, json!({ "type": "resize", "cols": 120, "rows": 40 }));
            far.line.send(Message::text(r#"{"type":"session_init","session_id":"x"}"#)).await.unwrap();
            far.show("$ ").await;
            far.type_in("ls\r").await;
            assert_eq!(far.heard().await, Message::binary(b"ls\r".as_slice()));
            far.show("a b\r\n").await;
            far.close(CloseCode::Normal, "shell exited").await;
            assert!(far.heard().await.is_close(), "the client answers the close");
            far
        },
    )
    .await;
    assert!(matches!(end, End::Exited), "{end:?}");
    assert_eq!(shown, "$ a b\r\n", "the session's id is not shown");
}

#[tokio::test]
async fn a_pipe_that_ends_has_the_shell_exit() {
    for (typed, expected) in [("ls\n", &["ls\n", "exit\n", "\x04"][..]), ("ls", &["ls", "\n", "exit\n"])] {
        let (end, _) = session(no_size, async |mut far| {
            far.type_in(typed).await;
            far.typing = None;
            for text in expected {
                assert_eq!(far.heard().await, Message::binary(text.as_bytes()));
            }
            far.close(CloseCode::Normal, "shell exited").await;
            far
        })
        .await;
        assert!(matches!(end, End::Exited), "{end:?}");
    }
}

#[tokio::test]
async fn what_is_shown_is_read_while_what_is_typed_waits() {
    let (end, shown) = session(no_size, async |mut far| {
        // More than fits in between: the client cannot send all of it before the other end reads.
        let sending = far.typing.clone().unwrap();
        let typing = async {
            for _ in 0..8 {
                sending.send(vec![b'x'; 16 * 1024]).await.unwrap();
            }
        };
        let text = "y".repeat(256 * 1024);
        tokio::join!(typing, far.show(&text));
        let mut heard = 0;
        while heard < 128 * 1024 {
            heard += far.heard().await.len();
        }
        far.close(CloseCode::Normal, "shell exited").await;
        far
    })
    .await;
    assert!(matches!(end, End::Exited), "{end:?}");
    assert_eq!(shown.len(), 256 * 1024);
}

#[tokio::test]
async fn other_ends_are_told_apart() {
    for (code, reason, expected) in [
        (CloseCode::Again, "16 shells open", "Refused"),
        (CloseCode::Error, "the image has neither", "Refused"),
        (CloseCode::Size, "too long", "Refused"),
        (CloseCode::Away, "the edge restarts", "Broken"),
        (CloseCode::Normal, "something else", "Broken"),
    ] {
        let (end, _) = session(no_size, async |mut far| {
            far.close(code, reason).await;
            far
        })
        .await;
        let end = format!("{end:?}");
        assert!(end.starts_with(expected) && end.contains(reason), "{end}");
    }
    let (end, _) = session(no_size, async |mut far| {
        // Gone without a close.
        let (_, elsewhere) = tokio::io::duplex(1);
        far.line = WebSocketStream::from_raw_socket(elsewhere, Role::Server, None).await;
        far
    })
    .await;
    assert!(matches!(&end, End::Broken(why) if why.contains("broke")), "{end:?}");
}

#[tokio::test]
async fn who_leaves_is_not_held_back_by_a_shell_that_hangs() {
    let (end, _) = session(no_size, async |far| {
        for _ in 0..8 {
            far.type_in(&"x".repeat(4096)).await;
        }
        far.leaving.send(Leave::Asked).await.unwrap();
        far
    })
    .await;
    assert!(matches!(end, End::Left(Leave::Asked)), "{end:?}");
}
