use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use super::*;

/// Plays the other side: greets, agrees, then answers each line by the script.
async fn connected(
    script: &'static [&'static str],
) -> (Qmp, mpsc::UnboundedReceiver<Report>, tokio::task::JoinHandle<Vec<String>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = tokio::spawn(async move {
        let (reader, mut writer) = theirs.into_split();
        let mut reader = BufReader::new(reader).lines();
        let mut heard = Vec::new();
        writer.write_all(b"{\"QMP\": {\"version\": {}}}\r\n").await.unwrap();
        reader.next_line().await.unwrap().unwrap();
        writer.write_all(b"{\"return\": {}, \"id\": 1}\r\n").await.unwrap();
        for answer in script {
            heard.push(reader.next_line().await.unwrap().unwrap());
            writer.write_all(answer.as_bytes()).await.unwrap();
        }
        heard
    });
    let (sender, reports) = mpsc::unbounded_channel();
    let qmp = Qmp::connect(ours, move |report| drop(sender.send(report))).await.unwrap();
    (qmp, reports, server)
}

#[tokio::test]
async fn answers_find_their_command_and_events_pass_by() {
    let (qmp, mut reports, server) = connected(&[
        "{\"event\": \"STOP\", \"data\": {\"x\": 1}}\r\n{\"return\": {\"status\": \"paused\"}, \"id\": 2}\r\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 3}\r\n",
        "",
    ])
    .await;
    assert_eq!(qmp.command("query-status", json!({})).await.unwrap()["status"], "paused");
    assert!(
        matches!(reports.recv().await, Some(Report::Event { name, data }) if name == "STOP" && data["x"] == 1)
    );
    let refused = qmp.command("cont", json!({})).await;
    assert!(matches!(refused, Err(Error::Command { command: "cont", message }) if message == "no"));
    // The other side hangs up instead of answering.
    assert!(matches!(qmp.command("stop", json!({})).await, Err(Error::Gone)));
    assert!(matches!(reports.recv().await, Some(Report::Closed)));
    assert!(matches!(qmp.command("stop", json!({})).await, Err(Error::Gone)));
    assert_eq!(server.await.unwrap()[0], r#"{"arguments":{},"execute":"query-status","id":2}"#);
}

#[tokio::test]
async fn a_line_without_end_closes_the_connection() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let flood = tokio::spawn(async move { while theirs.write_all(&[b'x'; 4096]).await.is_ok() {} });
    assert!(matches!(Qmp::connect(ours, |_| ()).await, Err(Error::Protocol(_))));
    flood.await.unwrap();
}
