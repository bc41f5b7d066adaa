//! What a Dockerfile needs from us before buildah sees it: its FROM lines name full image references, and RUN
//! steps see variables (CA bundle, package index) that the image must not keep.
//!
//! Such variables are declared with ARG right after each FROM: by Dockerfile semantics an ARG is visible to
//! RUN steps, loses against ENV, and is never part of an image. The line that this adds is taken out of
//! buildah's step count again by [`Plan::translate`], so that logs speak of the user's steps.
//!
//! This is no Dockerfile parser: instructions other than ARG and FROM pass
//! through byte for byte, and buildah checks them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use crate::domain::base_images::{Aliases, Bases, stored_name};
use crate::domain::reference::{Reference, local_name, parse as parse_reference};

/// Largest Dockerfile, in bytes.
pub const DOCKERFILE_BYTES_MAX: usize = 1 << 20;
pub const STAGES_MAX: usize = 100;

/// Why a Dockerfile cannot be built, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is over [`DOCKERFILE_BYTES_MAX`] or [`STAGES_MAX`], or not text.
    #[error("The Dockerfile {0}.")]
    Unreadable(&'static str),
    #[error("The Dockerfile has no FROM line.")]
    NoFrom,
    /// A FROM line without an image, or with a variable that is not set.
    #[error("The Dockerfile's line {line} names no image: {text}")]
    EmptyFrom { line: usize, text: String },
    /// A FROM line names one of our bases that does not exist here.
    #[error("The Dockerfile's line {line} names the base image '{name}', which does not exist here. {bases}")]
    UnknownBase { line: usize, name: String, bases: String },
    /// A FROM line asks for the images of another CPU.
    #[error(
        "The Dockerfile's line {line} asks for images for {asked}, but the hosts of this fleet run linux/{own} and emulate no \
         other CPU: leave --platform out, or write --platform=linux/{own}."
    )]
    OtherPlatform { line: usize, asked: String, own: &'static str },
}

/// What FROM lines may name.
#[derive(Debug, Clone, Copy)]
pub struct Offered<'a> {
    pub bases: &'a Bases,
    pub aliases: &'a Aliases,
    /// Name and version of the base that the request chose.
    pub pinned: Option<(&'a str, u64)>,
    /// CPU of the build, as container images name it: "amd64" or "arm64".
    pub cpu: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub text: String,
    /// Our base images it uses, as name and version.
    pub local_bases: Vec<(String, u64)>,
    pub remote_images: Vec<String>,
    argument_line: Option<String>,
    shown: HashMap<String, String>,
}

/// Prepares a Dockerfile: resolves its FROM lines against what is `offered` and declares `variables` for RUN steps.
pub fn prepare(
    source: &[u8],
    offered: Offered<'_>,
    variables: &BTreeMap<String, String>,
) -> Result<Plan, Refusal> {
    if source.len() > DOCKERFILE_BYTES_MAX {
        return Err(Refusal::Unreadable("is larger than 1 MiB"));
    }
    let source = std::str::from_utf8(source).map_err(|_| Refusal::Unreadable("is not UTF-8 text"))?;
    let argument_line = (!variables.is_empty()).then(|| argument_line(variables));
    let mut plan = Plan {
        text: String::with_capacity(source.len() + 512),
        local_bases: Vec::new(),
        remote_images: Vec::new(),
        argument_line,
        shown: HashMap::new(),
    };
    let mut arguments: HashMap<String, String> = HashMap::new();
    let mut stages: HashSet<String> = HashSet::new();
    let mut stage_count = 0;
    for instruction in instructions(source) {
        let keyword = instruction.keyword.to_ascii_uppercase();
        if keyword == "ARG" && stage_count == 0 {
            declare(&instruction.rest, &mut arguments);
        }
        if keyword != "FROM" {
            plan.text.push_str(instruction.raw);
            continue;
        }
        stage_count += 1;
        if stage_count > STAGES_MAX {
            return Err(Refusal::Unreadable("has more than 100 stages"));
        }
        let from = From::read(&instruction, &arguments)?;
        if let Some(asked) = from.other_platform(&arguments, offered.cpu) {
            return Err(Refusal::OtherPlatform { line: instruction.line, asked, own: offered.cpu });
        }
        let resolved = match stages.contains(&from.image.to_ascii_lowercase()) {
            true => from.image.clone(),
            false => plan.resolve(&from, &instruction, offered)?,
        };
        stages.extend(from.stage.as_deref().map(str::to_ascii_lowercase));
        let line = from.line(&resolved);
        plan.shown.insert(line.clone(), instruction.text());
        // The `escape` directive is a comment in front of an instruction.
        plan.text.push_str(instruction.comments());
        plan.text.push_str(&line);
        plan.text.push('\n');
        if let Some(arguments) = &plan.argument_line {
            plan.text.push_str(arguments);
            plan.text.push('\n');
        }
    }
    if stage_count == 0 {
        return Err(Refusal::NoFrom);
    }
    Ok(plan)
}

impl Plan {
    fn resolve(
        &mut self,
        from: &From,
        instruction: &Instruction<'_>,
        Offered { bases, aliases, pinned, .. }: Offered<'_>,
    ) -> Result<String, Refusal> {
        match parse_reference(&from.image, |name| bases.0.contains_key(stored_name(name, aliases))) {
            Reference::Scratch => Ok("scratch".to_owned()),
            Reference::Remote(name) => {
                self.remote_images.push(name.clone());
                Ok(name)
            }
            Reference::Local { name, version } => {
                let name = stored_name(&name, aliases).to_owned();
                let chosen = pinned.filter(|(base, _)| version.is_none() && *base == name);
                let found =
                    chosen.map(|(_, number)| number).or_else(|| bases.resolve(&name, version.as_deref()));
                let number = found.ok_or_else(|| Refusal::UnknownBase {
                    line: instruction.line,
                    name: from.image.clone(),
                    bases: bases.sentence(),
                })?;
                let full = local_name(&name, &number.to_string());
                self.local_bases.push((name, number));
                Ok(full)
            }
        }
    }

    /// A line of buildah's output as the user should see it; `None` for one that is about our own addition.
    pub fn translate<'a>(&self, line: &'a str) -> Option<Cow<'a, str>> {
        let Some(step) = Step::parse(line) else {
            return Some(Cow::Borrowed(line));
        };
        let added = usize::from(self.argument_line.is_some());
        if added == 1 && step.number == 2 && self.argument_line.as_deref() == Some(step.text) {
            return None;
        }
        let number = if step.number > 1 { step.number - added } else { step.number };
        let text = self.shown.get(step.text).map_or(step.text, String::as_str);
        Some(Cow::Owned(format!("{}STEP {number}/{}: {text}", step.prefix, step.total - added)))
    }
}

/// One "STEP 3/7: RUN true" line of buildah.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// "[1/2] " in builds of several stages, else empty.
    pub prefix: &'a str,
    pub number: usize,
    pub total: usize,
    pub text: &'a str,
}

impl<'a> Step<'a> {
    pub fn parse(line: &'a str) -> Option<Self> {
        let at = line.find("STEP ")?;
        let prefix = &line[..at];
        if !(prefix.is_empty() || prefix.starts_with('[') && prefix.ends_with("] ")) {
            return None;
        }
        let (count, text) = line[at + 5..].split_once(": ")?;
        let (number, total) = count.split_once('/')?;
        let (number, total) = (number.parse().ok()?, total.parse().ok()?);
        (1 <= number && number <= total).then_some(Self { prefix, number, total, text })
    }
}

struct Instruction<'a> {
    /// The lines as they stand, with comments and blank lines before them.
    raw: &'a str,
    keyword: String,
    /// What follows the keyword, continuation lines joined.
    rest: String,
    line: usize,
}

impl Instruction<'_> {
    fn text(&self) -> String {
        format!("{} {}", self.keyword, self.rest)
    }

    /// The comments and blank lines before the instruction.
    fn comments(&self) -> &str {
        let blank = |line: &&str| line.trim().is_empty() || line.trim().starts_with('#');
        let length = self.raw.split_inclusive('\n').take_while(blank).map(str::len).sum();
        &self.raw[..length]
    }
}

/// Cuts a Dockerfile into instructions. Concatenating `raw` gives the source.
fn instructions(source: &str) -> Vec<Instruction<'_>> {
    let escape = escape_character(source);
    let mut found = Vec::new();
    let (mut start, mut position, mut line_number, mut first_line) = (0, 0, 0, 0);
    let mut joined = String::new();
    for line in source.split_inclusive('\n') {
        position += line.len();
        line_number += 1;
        let text = line.trim();
        // Comments and blank lines may stand between continuation lines.
        if text.starts_with('#') || text.is_empty() {
            continue;
        }
        if joined.is_empty() {
            first_line = line_number;
        }
        if let Some(more) = text.strip_suffix(escape) {
            joined.push_str(more);
            joined.push(' ');
            continue;
        }
        joined.push_str(text);
        found.push(instruction(&source[start..position], &joined, first_line));
        joined.clear();
        start = position;
    }
    if start < position {
        found.push(instruction(&source[start..position], &joined, first_line));
    }
    found
}

fn instruction<'a>(raw: &'a str, joined: &str, line: usize) -> Instruction<'a> {
    let (keyword, rest) = joined.trim().split_once(char::is_whitespace).unwrap_or((joined.trim(), ""));
    Instruction { raw, keyword: keyword.to_owned(), rest: rest.trim().to_owned(), line }
}

fn escape_character(source: &str) -> char {
    for line in source.lines() {
        let Some(directive) = line.trim().strip_prefix('#') else {
            break;
        };
        let Some((name, value)) = directive.split_once('=') else {
            break;
        };
        if name.trim().eq_ignore_ascii_case("escape") {
            return if value.trim() == "`" { '`' } else { '\\' };
        }
    }
    '\\'
}

struct From {
    flags: Vec<String>,
    image: String,
    stage: Option<String>,
}

impl From {
    fn read(instruction: &Instruction<'_>, arguments: &HashMap<String, String>) -> Result<Self, Refusal> {
        let words: Vec<&str> = instruction.rest.split_whitespace().collect();
        let flags: Vec<String> =
            words.iter().take_while(|word| word.starts_with("--")).map(|word| (*word).to_owned()).collect();
        let image = words.get(flags.len()).map(|word| expand(unquoted(word), arguments)).unwrap_or_default();
        if image.is_empty() {
            return Err(Refusal::EmptyFrom { line: instruction.line, text: instruction.text() });
        }
        let stage = match words.get(flags.len() + 1..) {
            Some([keyword, name]) if keyword.eq_ignore_ascii_case("as") => Some((*name).to_owned()),
            _ => None,
        };
        Ok(Self { flags, image, stage })
    }

    /// The platform that the line asks for, when it is Linux on another CPU. One whose variables are not known here is
    /// buildah's to judge.
    fn other_platform(&self, arguments: &HashMap<String, String>, own: &str) -> Option<String> {
        let asked = self.flags.iter().find_map(|flag| flag.strip_prefix("--platform="))?;
        let asked = expand(unquoted(asked), arguments);
        let cpu = match asked.strip_prefix("linux/")?.split('/').next()? {
            "aarch64" => "arm64",
            "x86_64" => "amd64",
            cpu => cpu,
        };
        (!cpu.is_empty() && cpu != own).then_some(asked)
    }

    fn line(&self, resolved: &str) -> String {
        let mut words = vec!["FROM".to_owned()];
        words.extend(self.flags.iter().cloned());
        words.push(resolved.to_owned());
        if let Some(stage) = &self.stage {
            words.extend(["AS".to_owned(), stage.clone()]);
        }
        words.join(" ")
    }
}

fn declare(rest: &str, arguments: &mut HashMap<String, String>) {
    for word in rest.split_whitespace() {
        if let Some((name, value)) = word.split_once('=') {
            let value = expand(unquoted(value), arguments);
            arguments.insert(name.to_owned(), value);
        }
    }
}

fn unquoted(word: &str) -> &str {
    let inner = |quote: char| word.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inner('"').or_else(|| inner('\'')).unwrap_or(word)
}

/// Replaces `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+other}`.
fn expand(text: &str, arguments: &HashMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (expression, tail) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some(parts) => parts,
            None => {
                let end =
                    after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
                after.split_at(end)
            }
        };
        let set = |name: &str| arguments.get(name).filter(|value| !value.is_empty()).cloned();
        let value = if let Some((name, default)) = expression.split_once(":-") {
            set(name).unwrap_or_else(|| default.to_owned())
        } else if let Some((name, other)) = expression.split_once(":+") {
            set(name).map(|_| other.to_owned()).unwrap_or_default()
        } else {
            set(expression).unwrap_or_default()
        };
        out.push_str(&value);
        rest = tail;
    }
    out.push_str(rest);
    out
}

fn argument_line(variables: &BTreeMap<String, String>) -> String {
    let words = variables.iter().map(|(name, value)| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,@+%=".contains(c);
        if value.chars().all(plain) {
            return format!("{name}={value}");
        }
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
        format!("{name}=\"{escaped}\"")
    });
    format!("ARG {}", words.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests;
