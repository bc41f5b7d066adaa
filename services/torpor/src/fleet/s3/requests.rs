//! Requests as the server has them, for tests of what answers them.

use hyper::http::Extensions;
use hyper::{HeaderMap, Method, Uri};
use s3s::S3Request;

pub fn request<T>(method: Method, uri: Uri, input: T) -> S3Request<T> {
    S3Request {
        input,
        method,
        uri,
        headers: HeaderMap::new(),
        extensions: Extensions::new(),
        credentials: None,
        region: None,
        service: None,
        trailing_headers: None,
    }
}
