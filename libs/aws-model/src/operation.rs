//! The operations of both services.

use crate::description;
use crate::error::ErrorClass;
use crate::shape::Structure;

/// One of the two services; the version in a request's path says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// `lambda-microvms`: images, microVMs, tags.
    Microvms,
    /// `lambda-core`: network connectors.
    Core,
}

impl Service {
    /// The service's name as clients know it, "lambda-microvms" or "lambda-core".
    pub fn name(self) -> &'static str {
        match self {
            Self::Microvms => "lambda-microvms",
            Self::Core => "lambda-core",
        }
    }
}

macro_rules! names {
    ($($name:ident),* $(,)?) => {
        /// The name of an operation. Who must know all of them matches on it: a new one does not compile until it has its place.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
        pub enum OperationName { $($name),* }

        impl OperationName {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// "RunMicrovm".
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

names! {
    CreateMicrovmImage,
    GetMicrovmImage,
    ListMicrovmImages,
    UpdateMicrovmImage,
    DeleteMicrovmImage,
    GetMicrovmImageVersion,
    ListMicrovmImageVersions,
    UpdateMicrovmImageVersion,
    DeleteMicrovmImageVersion,
    ListMicrovmImageBuilds,
    GetMicrovmImageBuild,
    ListManagedMicrovmImages,
    ListManagedMicrovmImageVersions,
    RunMicrovm,
    GetMicrovm,
    ListMicrovms,
    SuspendMicrovm,
    ResumeMicrovm,
    TerminateMicrovm,
    CreateMicrovmAuthToken,
    CreateMicrovmShellAuthToken,
    ListTags,
    TagResource,
    UntagResource,
    CreateNetworkConnector,
    GetNetworkConnector,
    ListNetworkConnectors,
    UpdateNetworkConnector,
    DeleteNetworkConnector,
    ListNetworkConnectorVersions,
}

/// One operation: how it is asked for, what it takes and how it answers. There is one value per operation.
#[non_exhaustive]
pub struct Operation {
    pub name: OperationName,
    pub service: Service,
    /// HTTP method, upper case.
    pub method: &'static str,
    /// Path with parameters in braces, "/2025-09-09/microvms/{microvmIdentifier}".
    pub path: &'static str,
    /// Status of a success.
    pub success: u16,
    /// The action that a policy allows, "lambda:RunMicrovm".
    pub action: &'static str,
    /// The error classes of its model.
    pub errors: Vec<ErrorClass>,
    pub input: Structure,
    /// Members that the live service asks for though their shapes call them optional.
    pub demands: Vec<Demand>,
    pub(crate) reply: ReplyForm,
}

/// A member that the live service asks for though the shape calls it optional.
pub struct Demand {
    /// Names from the root to the member.
    pub member: Vec<String>,
    /// What the service says without it.
    pub sentence: String,
}

/// The members of an answer.
pub(crate) struct ReplyForm {
    pub members: Vec<ReplyMember>,
    /// The list member of a page, and the members of its items.
    pub items: Option<(&'static str, Vec<ReplyMember>)>,
}

pub(crate) struct ReplyMember {
    pub name: &'static str,
    /// Sent as null when there is no value.
    pub always: bool,
}

/// Every operation, those of `lambda-microvms` first.
pub fn operations() -> &'static [Operation] {
    description::table()
}

/// The operation of that name.
///
/// # Panics
/// Never: a test asks for every name.
pub fn operation(name: OperationName) -> &'static Operation {
    operations().iter().find(|operation| operation.name == name).expect("every name is described")
}

impl Operation {
    /// True when the operation's model knows the class.
    pub fn models(&self, class: ErrorClass) -> bool {
        self.errors.contains(&class)
    }

    /// The class that says "too fast" in this operation's model.
    pub fn throttled(&self) -> ErrorClass {
        self.first_of(&[ErrorClass::Throttling, ErrorClass::TooManyRequests])
    }

    /// The class that says "our fault" in this operation's model.
    pub fn internal(&self) -> ErrorClass {
        self.first_of(&[ErrorClass::InternalServer, ErrorClass::Service])
    }

    /// The class that says "not in this state" in this operation's model.
    pub fn conflict(&self) -> ErrorClass {
        self.first_of(&[ErrorClass::Conflict, ErrorClass::ResourceConflict])
    }

    /// The class for a rule of the service that the request breaks.
    pub fn invalid(&self) -> ErrorClass {
        self.first_of(&[ErrorClass::Validation, ErrorClass::InvalidParameterValue])
    }

    /// The first that the model knows, else the first.
    fn first_of(&self, classes: &[ErrorClass]) -> ErrorClass {
        let known = classes.iter().copied().find(|class| self.models(*class));
        known.unwrap_or(classes[0])
    }
}

impl std::fmt::Display for OperationName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name.as_str())
    }
}

impl PartialEq for Operation {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Operation {}
