//! Client tokens.

use super::*;

const SECRET: &str = "hunter2-hunter2";

async fn order(cell: &Cell<'_>, token: &str) -> CreateImageRequest {
    let mut order = cell.order("app").await;
    order.client_token = token.to_owned();
    let configuration = order.configuration.as_mut().unwrap();
    configuration.environment_variables.insert("PASSWORD".to_owned(), SECRET.to_owned());
    order.tags.insert("stage".to_owned(), "test".to_owned());
    order
}

async fn create(cell: &Cell<'_>, order: CreateImageRequest) -> Result<CreateImageResponse, Status> {
    Ok(cell.client.clone().create_image(order).await?.into_inner())
}

const CONFLICT: (&str, &str) = ("CLIENT_TOKEN_CONFLICT", "The client token was used with other parameters");

#[tokio::test]
async fn client_tokens() {
    run![
        a_create_token_gives_its_first_answer_for_ever,
        an_update_token_makes_one_version,
        one_token_at_the_same_time_makes_one_image,
        tokens_have_a_form
    ];
}

async fn a_create_token_gives_its_first_answer_for_ever(cell: &Cell<'_>) {
    let order = order(cell, "first").await;
    let answer = create(cell, order.clone()).await.unwrap();
    assert_eq!(answer.image.as_ref().unwrap().state(), ImageState::Creating);
    cell.until_state("app", ImageState::CreateFailed).await;
    assert_eq!(create(cell, order.clone()).await.unwrap(), answer);

    cell.delete("app").await.unwrap();
    cell.until_gone("app").await;
    assert_eq!(create(cell, order.clone()).await.unwrap(), answer);
    assert_eq!(cell.try_get("app").await.unwrap_err().code(), Code::NotFound, "it brings nothing back");

    let anew = CreateImageRequest { client_token: "second".to_owned(), ..order.clone() };
    let anew = create(cell, anew).await.unwrap();
    assert_ne!(anew.image.unwrap().id, answer.image.as_ref().unwrap().id);
    assert_eq!(create(cell, order.clone()).await.unwrap(), answer);

    let mut other = order;
    other.tags.clear();
    refused(create(cell, other).await, CONFLICT.0, CONFLICT.1);
    let (tokens, _) = cell.catalog.store().list("image-tokens/").await.unwrap();
    assert_eq!(tokens.len(), 2);
    for (_, token) in tokens {
        let text = String::from_utf8_lossy(&token.value).into_owned();
        assert!(!text.contains(SECRET), "tokens hold no secrets");
    }
    cell.until_state("app", ImageState::CreateFailed).await;
}

async fn an_update_token_makes_one_version(cell: &Cell<'_>) {
    let order = order(cell, "one").await;
    create(cell, order.clone()).await.unwrap();
    cell.until_state("app", ImageState::CreateFailed).await;
    let update = UpdateImageRequest {
        image_identifier: "app".to_owned(),
        configuration: order.configuration,
        // Other calls' tokens are other tokens.
        client_token: "one".to_owned(),
    };
    let call = |update: UpdateImageRequest| {
        let mut client = cell.client.clone();
        async move { client.update_image(update).await.map(tonic::Response::into_inner) }
    };
    let answer = call(update.clone()).await.unwrap();
    assert_eq!(answer.version.as_ref().unwrap().image_version, "2.0");
    cell.until_state("app", ImageState::UpdateFailed).await;
    let by_arn = UpdateImageRequest { image_identifier: arn("app"), ..update.clone() };
    assert_eq!(call(by_arn).await.unwrap(), answer, "the same image is meant");
    assert_eq!(cell.versions("app").await, ["2.0", "1.0"]);
    let mut other = update.clone();
    other.configuration.as_mut().unwrap().description = "other".to_owned();
    refused(call(other).await, CONFLICT.0, CONFLICT.1);

    cell.delete("app").await.unwrap();
    cell.until_gone("app").await;
    assert_eq!(call(update).await.unwrap(), answer);
}

async fn one_token_at_the_same_time_makes_one_image(cell: &Cell<'_>) {
    let order = order(cell, "race").await;
    let calls = (0..8).map(|_| create(cell, order.clone()));
    let answers = futures::future::join_all(calls).await;
    let first = answers[0].as_ref().unwrap();
    for answer in &answers {
        assert_eq!(answer.as_ref().unwrap(), first);
    }
    cell.until_state("app", ImageState::CreateFailed).await;
}

async fn tokens_have_a_form(cell: &Cell<'_>) {
    for (token, good) in [("t".repeat(128), true), ("t".repeat(129), false), ("a b".to_owned(), true)] {
        let mut order = cell.order(&format!("image-{}", token.len())).await;
        order.client_token = token;
        let answer = create(cell, order).await;
        if good {
            answer.unwrap();
        } else {
            refused(answer, "INVALID_ARGUMENT", "clientToken: must be 1 to 128 characters");
        }
    }
    cell.until_state("image-128", ImageState::CreateFailed).await;
}
