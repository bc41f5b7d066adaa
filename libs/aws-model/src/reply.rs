//! Answers of success: which members are sent, absent ones as null or not at all, and times in the service's form.

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::operation::{Operation, ReplyMember, Service};

/// An answer of success, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// "application/json"; `None` with an empty body.
    pub content_type: Option<&'static str>,
    pub body: Vec<u8>,
}

const NO_CONTENT: u16 = 204;

impl Operation {
    /// The answer with these members. `lambda-microvms` sends the members of the operation's answer that are absent here as null,
    /// but for a few, also in the items of a page; `lambda-core` leaves out what is null.
    pub fn reply(&self, mut members: Map<String, Value>) -> Reply {
        if self.success == NO_CONTENT {
            return Reply { status: self.success, content_type: None, body: Vec::new() };
        }
        complete(self.service, &self.reply.members, &mut members);
        if let Some((list, items)) = &self.reply.items
            && let Some(Value::Array(elements)) = members.get_mut(*list)
        {
            let objects = elements.iter_mut().filter_map(Value::as_object_mut);
            objects.for_each(|item| complete(self.service, items, item));
        }
        Reply {
            status: self.success,
            content_type: Some("application/json"),
            body: Value::Object(members).to_string().into_bytes(),
        }
    }
}

fn complete(service: Service, form: &[ReplyMember], members: &mut Map<String, Value>) {
    match service {
        Service::Core => members.retain(|_, value| !value.is_null()),
        Service::Microvms => {
            for member in form {
                match members.get(member.name) {
                    None if member.always => drop(members.insert(member.name.to_owned(), Value::Null)),
                    Some(Value::Null) if !member.always => drop(members.remove(member.name)),
                    _ => {}
                }
            }
        }
    }
}

const ISO_8601: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

impl Service {
    /// A point in time, given in seconds since 1970 and nanoseconds, in the form of the service's answers: seconds with a
    /// fraction in `lambda-microvms`, ISO-8601 in `lambda-core`, both to the millisecond. Null when it is out of range.
    pub fn timestamp(self, seconds: i64, nanos: u32) -> Value {
        let millis = nanos.min(999_999_999) / 1_000_000;
        match self {
            #[expect(clippy::cast_precision_loss, reason = "exact to the millisecond for 285,000 years")]
            Self::Microvms => {
                let total = seconds.saturating_mul(1000).saturating_add(millis.into());
                Value::from(total as f64 / 1000.0)
            }
            Self::Core => {
                let whole = OffsetDateTime::from_unix_timestamp(seconds).ok();
                let at = whole.and_then(|at| at.replace_millisecond(u16::try_from(millis).ok()?).ok());
                at.and_then(|at| at.format(ISO_8601).ok()).map_or(Value::Null, Value::from)
            }
        }
    }
}
