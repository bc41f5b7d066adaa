//! Answers on their way out.

use aws_model::{ErrorReply, Reply};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::server::headers::REQUEST_ID;

/// An answer, not yet under a request's id.
#[derive(Debug)]
pub struct Answer {
    /// What the audit record says: "ok", or the error's class.
    pub result: &'static str,
    response: Response<Full<Bytes>>,
}

impl Answer {
    pub fn success(reply: Reply) -> Self {
        let mut response = response(reply.status, reply.body);
        if let Some(kind) = reply.content_type {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        Self { result: "ok", response }
    }

    /// An error in a form of its own; `result` names it in the audit record.
    pub fn refusal(result: &'static str, reply: Reply) -> Self {
        Self { result, ..Self::success(reply) }
    }

    /// An error; `result` names it in the audit record.
    pub fn error(result: &'static str, reply: ErrorReply) -> Self {
        let mut response = response(reply.status, reply.body);
        for (name, value) in reply.headers {
            // Numbers, class names and media types: always visible ASCII.
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        Self { result, response }
    }

    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// The response, under the request's id.
    pub fn response(mut self, request_id: &str) -> Response<Full<Bytes>> {
        let id = HeaderValue::try_from(request_id).expect("a UUID is visible ASCII");
        self.response.headers_mut().insert(REQUEST_ID, id);
        self.response
    }
}

fn response(status: u16, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}
