//! What has to be known of a Dockerfile before BuildKit sees it: which of our base images it uses, and what it asks
//! for that is not here, so that it is refused at once, by the number of its line.
//!
//! This is no parser of everything: it cuts a file into instructions as BuildKit does (continuation lines, comments between
//! them, heredocs) and reads those that name images. What they mean is BuildKit's to say.

use std::collections::{HashMap, HashSet};

use crate::domain::base_images::{Aliases, Bases, stored_name};
use crate::domain::reference::{Reference, parse as parse_reference, repository_and_tag};

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
    /// The first lines name a program that is to read the file, which is not the one that is here.
    #[error(
        "The Dockerfile's line {line} asks for the frontend '{frontend}', which a registry would have to send and which would run \
         here: leave the line out. Dockerfiles are read as docker/dockerfile reads them."
    )]
    OtherFrontend { line: usize, frontend: String },
    /// A flag that this BuildKit does not know.
    #[error(
        "The Dockerfile's line {line} has {instruction} {flag}, which builds here do not know. {instead}"
    )]
    UnknownFlag { line: usize, instruction: String, flag: String, instead: &'static str },
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

/// A use of one of our base images.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseUse {
    /// The base, by its own name.
    pub name: String,
    pub version: u64,
    /// What the Dockerfile calls it, as a container tool reads that.
    pub repository: String,
    pub tag: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What BuildKit is given. Its lines are the file's.
    pub text: String,
    pub bases: Vec<BaseUse>,
    pub remote_images: Vec<String>,
}

/// Names of the frontend that is here, as `# syntax=` gives them, without version and registry.
const FRONTENDS: [&str; 2] = ["docker/dockerfile", "docker/dockerfile-upstream"];
/// Flags of instructions that only newer frontends know, and what does the same.
const UNKNOWN_FLAGS: [(&str, &str); 3] = [
    ("--parents", "Copy each directory to where it belongs, with a COPY of its own."),
    ("--exclude", "List in .dockerignore what is not to be copied."),
    ("--unpack", "ADD unpacks a local archive, and a RUN with tar any other."),
];

/// Reads a Dockerfile and resolves the images that it names against what is `offered`.
pub fn prepare(source: &[u8], offered: Offered<'_>) -> Result<Plan, Refusal> {
    if source.len() > DOCKERFILE_BYTES_MAX {
        return Err(Refusal::Unreadable("is larger than 1 MiB"));
    }
    let source = std::str::from_utf8(source).map_err(|_| Refusal::Unreadable("is not UTF-8 text"))?;
    let text = own_frontend(source)?;
    let mut plan = Plan { text, bases: Vec::new(), remote_images: Vec::new() };
    let mut arguments = platform(offered.cpu);
    let mut stages: HashSet<String> = HashSet::new();
    let mut stage_count = 0;
    for instruction in instructions(source) {
        match instruction.keyword.to_ascii_uppercase().as_str() {
            "ARG" if stage_count == 0 => declare(&instruction.rest, &mut arguments),
            "FROM" => {
                stage_count += 1;
                if stage_count > STAGES_MAX {
                    return Err(Refusal::Unreadable("has more than 100 stages"));
                }
                let from = From::read(&instruction, &arguments)?;
                if let Some(asked) = from.other_platform(&arguments, offered.cpu) {
                    return Err(Refusal::OtherPlatform { line: instruction.line, asked, own: offered.cpu });
                }
                if !stages.contains(&from.image.to_ascii_lowercase()) {
                    plan.resolve(&from.image, instruction.line, offered)?;
                }
                stages.extend(from.stage.as_deref().map(str::to_ascii_lowercase));
            }
            keyword @ ("COPY" | "ADD" | "RUN") => {
                instruction.check_flags(keyword)?;
                for image in instruction.copied_from(&arguments) {
                    let is_stage =
                        stages.contains(&image.to_ascii_lowercase()) || image.parse::<usize>().is_ok();
                    if !is_stage {
                        plan.resolve(&image, instruction.line, offered)?;
                    }
                }
            }
            _ => {}
        }
    }
    if stage_count == 0 {
        return Err(Refusal::NoFrom);
    }
    Ok(plan)
}

/// The file without the line that has BuildKit fetch the frontend that it has: the directive is given another name, under which it is
/// one of those that say nothing.
fn own_frontend(source: &str) -> Result<String, Refusal> {
    for (index, line) in source.lines().enumerate() {
        let Some((name, value)) = directive(line) else { break };
        if !name.eq_ignore_ascii_case("syntax") {
            continue;
        }
        let image = value.split_whitespace().next().unwrap_or_default();
        let image = image.split('@').next().unwrap_or(image);
        let known = image.strip_prefix("docker.io/").unwrap_or(image).split(':').next().unwrap_or_default();
        if !FRONTENDS.contains(&known) {
            return Err(Refusal::OtherFrontend { line: index + 1, frontend: value.to_owned() });
        }
        let at = source.find(name).unwrap_or_default();
        return Ok(format!("{}frontend{}", &source[..at], &source[at + name.len()..]));
    }
    Ok(source.to_owned())
}

/// Name and value of a line like "# name=value".
fn directive(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.trim_start_matches('\u{feff}').trim().strip_prefix('#')?.split_once('=')?;
    let name = name.trim();
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
    is_name.then_some((name, value.trim()))
}

/// The arguments that every Dockerfile has.
fn platform(cpu: &str) -> HashMap<String, String> {
    let mut arguments = HashMap::new();
    for side in ["BUILD", "TARGET"] {
        for (name, value) in
            [("PLATFORM", format!("linux/{cpu}")), ("OS", "linux".to_owned()), ("ARCH", cpu.to_owned())]
        {
            arguments.insert(format!("{side}{name}"), value);
        }
    }
    arguments
}

impl Plan {
    /// Takes note of an image that a line names.
    fn resolve(
        &mut self,
        image: &str,
        line: usize,
        Offered { bases, aliases, pinned, .. }: Offered<'_>,
    ) -> Result<(), Refusal> {
        let Reference::Local { name, version } =
            parse_reference(image, |name| bases.0.contains_key(stored_name(name, aliases)))
        else {
            if image != "scratch" {
                self.remote_images.push(image.to_owned());
            }
            return Ok(());
        };
        let name = stored_name(&name, aliases).to_owned();
        let chosen = pinned.filter(|(base, _)| version.is_none() && *base == name);
        let found = chosen.map(|(_, number)| number).or_else(|| bases.resolve(&name, version.as_deref()));
        let version = found.ok_or_else(|| Refusal::UnknownBase {
            line,
            name: image.to_owned(),
            bases: bases.sentence(),
        })?;
        let (repository, tag) = repository_and_tag(image);
        let found = BaseUse { name, version, repository: repository.to_owned(), tag: tag.to_owned() };
        if !self.bases.contains(&found) {
            self.bases.push(found);
        }
        Ok(())
    }
}

struct Instruction {
    keyword: String,
    /// What follows the keyword, continuation lines joined; without heredocs.
    rest: String,
    line: usize,
}

impl Instruction {
    fn text(&self) -> String {
        format!("{} {}", self.keyword, self.rest)
    }

    /// The flags in front of what it does.
    fn flags(&self) -> impl Iterator<Item = &str> {
        self.rest.split_whitespace().take_while(|word| word.starts_with("--"))
    }

    fn check_flags(&self, keyword: &str) -> Result<(), Refusal> {
        let named = |flag: &str, name: &str| flag == name || flag.starts_with(&format!("{name}="));
        for flag in self.flags() {
            if let Some((name, instead)) = UNKNOWN_FLAGS.into_iter().find(|(name, _)| named(flag, name)) {
                let (instruction, flag) = (keyword.to_owned(), name.to_owned());
                return Err(Refusal::UnknownFlag { line: self.line, instruction, flag, instead });
            }
        }
        Ok(())
    }

    /// Images and stages that files are taken from.
    fn copied_from(&self, arguments: &HashMap<String, String>) -> Vec<String> {
        let named = |flag: &str| match flag.strip_prefix("--mount=") {
            Some(mount) => {
                mount.split(',').find_map(|option| option.strip_prefix("from=")).map(str::to_owned)
            }
            None => flag.strip_prefix("--from=").map(str::to_owned),
        };
        let names = self.flags().filter_map(named).map(|name| expand(unquoted(&name), arguments));
        // One whose variables are not known here is BuildKit's to judge.
        names.filter(|name| !name.is_empty()).collect()
    }
}

/// Cuts a Dockerfile into instructions.
fn instructions(source: &str) -> Vec<Instruction> {
    let escape = escape_character(source);
    let mut found = Vec::new();
    let mut first_line = 0;
    let mut joined = String::new();
    let mut lines = source.trim_start_matches('\u{feff}').lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let text = line.trim();
        // Comments and blank lines may stand between continuation lines.
        if text.starts_with('#') || text.is_empty() {
            continue;
        }
        if joined.is_empty() {
            first_line = index + 1;
        }
        if let Some(more) = text.strip_suffix(escape) {
            joined.push_str(more);
            joined.push(' ');
            continue;
        }
        joined.push_str(text);
        let instruction = instruction(&joined, first_line);
        joined.clear();
        for heredoc in heredocs(&instruction) {
            lines.by_ref().find(|(_, line)| heredoc.ends_at(line));
        }
        found.push(instruction);
    }
    if !joined.trim().is_empty() {
        found.push(instruction(&joined, first_line));
    }
    found
}

fn instruction(joined: &str, line: usize) -> Instruction {
    let (keyword, rest) = joined.trim().split_once(char::is_whitespace).unwrap_or((joined.trim(), ""));
    Instruction { keyword: keyword.to_owned(), rest: rest.trim().to_owned(), line }
}

/// A text that follows its instruction, up to a line with a word of its own.
#[derive(Debug, PartialEq, Eq)]
struct Heredoc {
    word: String,
    /// Tabs in front of its lines are not part of them.
    chomp: bool,
}

impl Heredoc {
    fn ends_at(&self, line: &str) -> bool {
        let line = if self.chomp { line.trim_start_matches('\t') } else { line };
        line == self.word
    }
}

/// Those of an instruction, in the order of their texts.
fn heredocs(instruction: &Instruction) -> Vec<Heredoc> {
    let keyword = instruction.keyword.to_ascii_uppercase();
    let inner = match keyword.as_str() {
        // An instruction for later has its own keyword.
        "ONBUILD" => instruction.rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase(),
        _ => keyword,
    };
    if !["RUN", "COPY", "ADD"].contains(&inner.as_str()) {
        return Vec::new();
    }
    let words = instruction.rest.split_whitespace();
    let read = |word: &str| {
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
        let (chomp, name) = rest.strip_prefix('-').map_or((false, rest), |name| (true, name));
        let word = unquoted(name).to_owned();
        (!word.is_empty() && !word.contains('<')).then_some(Heredoc { word, chomp })
    };
    words.filter_map(read).collect()
}

fn escape_character(source: &str) -> char {
    for line in source.lines() {
        let Some((name, value)) = directive(line) else { break };
        if name.eq_ignore_ascii_case("escape") {
            return if value == "`" { '`' } else { '\\' };
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
    fn read(instruction: &Instruction, arguments: &HashMap<String, String>) -> Result<Self, Refusal> {
        let flags: Vec<String> = instruction.flags().map(str::to_owned).collect();
        let words: Vec<&str> = instruction.rest.split_whitespace().skip(flags.len()).collect();
        let image = words.first().map(|word| expand(unquoted(word), arguments)).unwrap_or_default();
        if image.is_empty() {
            return Err(Refusal::EmptyFrom { line: instruction.line, text: instruction.text() });
        }
        let stage = match words.get(1..) {
            Some([keyword, name]) if keyword.eq_ignore_ascii_case("as") => Some((*name).to_owned()),
            _ => None,
        };
        Ok(Self { flags, image, stage })
    }

    /// The platform that the line asks for, when it is Linux on another CPU. One whose variables are not known here is
    /// BuildKit's to judge.
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

#[cfg(test)]
mod tests;
