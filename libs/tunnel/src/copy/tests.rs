use tokio::io::{AsyncWriteExt as _, duplex};

use super::*;

#[tokio::test]
async fn halves_close_one_by_one_and_bytes_are_counted() {
    let (mut client, tunnel) = duplex(1024);
    let (mut app, guest) = duplex(1024);
    let carried = tokio::spawn(async move {
        let mut seen = 0;
        let stop = CancellationToken::new();
        let (copied, ended) = copy(tunnel, guest, |count| seen += count, &stop).await;
        (copied, ended, seen)
    });
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = String::new();
    app.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    // The client's half is closed, and the answer still comes through.
    app.write_all(b"an answer").await.unwrap();
    app.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "an answer");
    let (copied, ended, seen) = carried.await.unwrap();
    assert_eq!(copied, Copied { to_guest: 8, from_guest: 9 });
    assert!(matches!(ended, Ended::Closed));
    assert_eq!(seen, 17);
}

#[tokio::test]
async fn an_answer_arrives_though_the_app_reads_nothing() {
    let (mut client, tunnel) = duplex(1024);
    let (mut app, guest) = duplex(1024);
    let carried = tokio::spawn(async move { copy(tunnel, guest, |_| (), &CancellationToken::new()).await });
    app.write_all(b"no").await.unwrap();
    drop(app);
    // Many times what the ways hold.
    client.write_all(&[0; 100_000]).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "no");
    client.write_all(&[0; 100_000]).await.unwrap();
    drop(client);
    let (copied, ended) = carried.await.unwrap();
    assert_eq!(copied, Copied { to_guest: 0, from_guest: 2 });
    assert!(matches!(ended, Ended::Closed), "{ended:?}");
}

#[tokio::test]
async fn the_token_cuts() {
    let (mut client, tunnel) = duplex(1024);
    let (_app, guest) = duplex(1024);
    let stop = CancellationToken::new();
    stop.cancel();
    let (_, ended) = copy(tunnel, guest, |_| (), &stop).await;
    assert!(matches!(ended, Ended::Cut));
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_again_and_again_is_held_after_an_answer() {
    let (mut client, tunnel) = duplex(1024);
    let (mut app, guest) = duplex(1024);
    let (stop, hold) = (CancellationToken::new(), CancellationToken::new());
    let mut session = Session::new(tunnel, guest);
    let answers = tokio::spawn(async move {
        let mut asked = [0; 4];
        let mut count = 0;
        while app.read_exact(&mut asked).await.is_ok() {
            tokio::time::sleep(QUIET / 4).await;
            app.write_all(b"yes").await.unwrap();
            count += 1;
        }
        count
    });
    let asks = async {
        let mut asked = 0;
        loop {
            client.write_all(b"ask!").await.unwrap();
            asked += 1;
            if asked == 3 {
                hold.cancel();
            }
            if tokio::time::timeout(QUIET * 4, client.read_exact(&mut [0; 3])).await.is_err() {
                return asked;
            }
        }
    };
    let begun = Instant::now();
    let (ended, asked) = tokio::join!(session.carry(|_| (), &stop, &hold), asks);
    assert!(matches!(ended, Ended::Held), "{ended:?}");
    assert!(begun.elapsed() < ANSWER_WAIT / 2, "{:?}", begun.elapsed());
    // The last one waits for the guest to wake: it is on its way to the guest still, or was not taken at all.
    drop(session);
    assert_eq!(answers.await.unwrap(), asked - 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_owed_comes_first() {
    // Given in time, and owed for ever: waited for no longer than is said.
    for (given, ends) in [(Some(ANSWER_WAIT / 2), ANSWER_WAIT / 2 + QUIET), (None, ANSWER_WAIT)] {
        let (mut client, tunnel) = duplex(1024);
        let (mut app, guest) = duplex(1024);
        let (stop, hold) = (CancellationToken::new(), CancellationToken::new());
        let mut session = Session::new(tunnel, guest);
        client.write_all(b"question").await.unwrap();
        let begun = Instant::now();
        let carried = session.carry(|_| (), &stop, &hold);
        let conversation = async {
            app.read_exact(&mut [0; 8]).await.unwrap();
            hold.cancel();
            if let Some(given) = given {
                tokio::time::sleep(given).await;
                app.write_all(b"answer").await.unwrap();
                client.read_exact(&mut [0; 6]).await.unwrap();
            }
        };
        let (ended, ()) = tokio::join!(carried, conversation);
        assert!(matches!(ended, Ended::Held), "{ended:?}");
        assert!((ends..=ends + QUIET * 2).contains(&begun.elapsed()), "{given:?}: {:?}", begun.elapsed());
    }
}
