// SPDX-License-Identifier: Apache-2.0
//! The chat template of a model: Jinja, as models bring it (`tokenizer.chat_template`), rendered as the `transformers`
//! library renders it.
//!
//! The template is the model owner's word, part of the model's identity. What it costs is bounded all the same: its length,
//! the steps of one rendering, and what it may give out. It reaches no file, no clock and no other template.
//!
//! Not established: that a text keeps its place. Who renders texts of strangers must look that none of them has become a
//! control token.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

/// A parsed template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// Who says what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<'a> {
    /// `system`, `user` or `assistant`.
    pub role: &'a str,
    /// The text.
    pub content: &'a str,
}

/// The template is none, or uses what is not there. It says nothing of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Longer than [`MAX_TEMPLATE`].
    #[error("the chat template is longer than {MAX_TEMPLATE} bytes")]
    TooLong,
    /// No Jinja that can be read here.
    #[error("the chat template cannot be read")]
    Syntax,
}

/// Why a conversation was not rendered. Names no text of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The template refuses it (`raise_exception`), such as roles that do not take turns.
    #[error("the chat template refuses this conversation")]
    Refused,
    /// The template fails or takes too many steps.
    #[error("the chat template failed")]
    Failed,
    /// More than [`MAX_EXPANSION`] times the conversation and the template together, and [`MAX_WRAPPING`] for each message.
    #[error("the chat template writes too much")]
    TooLong,
}

impl ChatTemplate {
    /// Parses a template. `bos` and `eos` are the texts of the tokens that begin and end a text of the model, empty where it
    /// has none.
    ///
    /// # Errors
    /// See [`ParseError`].
    pub fn parse(source: &str, bos: &str, eos: &str) -> Result<Self, ParseError> {
        if source.len() > MAX_TEMPLATE {
            return Err(ParseError::TooLong);
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|_| ParseError::Syntax)?);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_recursion_limit(MAX_DEPTH);
        // Methods of Python's texts, lists and dictionaries, which templates call.
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", refuse);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|_| ParseError::Syntax)?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The conversation as a text, up to where the assistant speaks.
    ///
    /// # Errors
    /// See [`RenderError`].
    pub fn render(&self, turns: &[Turn<'_>]) -> Result<String, RenderError> {
        let template = self.environment.get_template(NAME).map_err(|_| RenderError::Failed)?;
        let messages: Vec<Value> =
            turns.iter().map(|turn| context! { role => turn.role, content => turn.content }).collect();
        let values = context! {
            messages,
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        let length = turns.iter().fold(template.source().len(), |sum, turn| sum.saturating_add(turn.content.len()));
        let wrapping = turns.len().saturating_mul(MAX_WRAPPING);
        let mut out = Bounded { text: Vec::new(), most: length.saturating_mul(MAX_EXPANSION).saturating_add(wrapping) };
        match template.render_captured_to(values, &mut out) {
            Ok(_) => String::from_utf8(out.text).map_err(|_| RenderError::Failed),
            Err(error) if error.kind() == ErrorKind::WriteFailure => Err(RenderError::TooLong),
            Err(error) if is_refusal(&error) => Err(RenderError::Refused),
            Err(_) => Err(RenderError::Failed),
        }
    }
}

fn refuse(_why: Value) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, REFUSED))
}

fn is_refusal(error: &Error) -> bool {
    error.kind() == ErrorKind::InvalidOperation && error.detail() == Some(REFUSED)
}

struct Bounded {
    text: Vec<u8>,
    most: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        if self.text.len().saturating_add(part.len()) > self.most {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Most bytes of a template. The longest that models bring have some 20 KB.
pub const MAX_TEMPLATE: usize = 256 << 10;
/// A rendering is at most so many times as long as conversation and template together.
pub const MAX_EXPANSION: usize = 8;
/// Bytes that may stand around each message besides.
pub const MAX_WRAPPING: usize = 1024;
/// Steps of one rendering. A conversation of a thousand messages takes some hundred thousand.
const MAX_STEPS: u64 = 5_000_000;
const MAX_DEPTH: usize = 64;
const NAME: &str = "chat";
const REFUSED: &str = "refused by the template";

#[cfg(test)]
mod tests {
    use super::*;

    fn turn<'a>(role: &'a str, content: &'a str) -> Turn<'a> {
        Turn { role, content }
    }

    fn render(template: &str, turns: &[Turn<'_>]) -> Result<String, RenderError> {
        ChatTemplate::parse(template, "<s>", "</s>").unwrap().render(turns)
    }

    /// ChatML with the default instructions that small models bring.
    const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}\
        {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    #[test]
    fn chatml_writes_its_default_instructions() {
        let text = render(CHATML, &[turn("user", "Hi {{ 7 * 7 }}")]).unwrap();
        assert_eq!(
            text,
            "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi {{ 7 * 7 }}<|im_end|>\n<|im_start|>assistant\n"
        );
        let text = render(CHATML, &[turn("system", "Be brief."), turn("user", "Hi")]).unwrap();
        assert!(text.starts_with("<|im_start|>system\nBe brief.<|im_end|>\n"));
    }

    /// In the manner of Llama's and Mistral's: slices, methods, namespaces, tests, a refusal.
    #[test]
    fn what_templates_use_is_there() {
        let template = "
            {%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'].strip() %}{% set rest = messages[1:] %}
            {%- else %}{% set system = '' %}{% set rest = messages %}{%- endif %}
            {%- set ns = namespace(count=0) %}
            {{- bos_token }}
            {%- for message in rest %}
                {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must take turns') }}{%- endif %}
                {%- set ns.count = ns.count + 1 %}
                {%- if message.role == 'user' %}
                    {{- '[INST] ' + (system + '\n\n' if loop.first and system else '') + message.content | trim + ' [/INST]' }}
                {%- else %}
                    {{- ' ' + message.content.split('</think>')[-1].lstrip('\n') + eos_token }}
                {%- endif %}
            {%- endfor %}
            {%- if date_string is defined %}{{- date_string }}{% endif %}{{- ' #' ~ ns.count }}";
        let turns = [turn("system", " Be brief. "), turn("user", " a "), turn("assistant", "<think>x</think>\n\nb")];
        let text = render(template, &[&turns[..], &[turn("user", "c")]].concat()).unwrap();
        assert_eq!(text, "<s>[INST] Be brief.\n\na [/INST] b</s>[INST] c [/INST] #3");
        let error = render(template, &[turn("user", "a"), turn("user", "b")]).unwrap_err();
        assert_eq!(error, RenderError::Refused);
    }

    #[test]
    fn no_template_runs_for_ever_or_writes_without_end() {
        let turns = [turn("user", "x")];
        let long = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert_eq!(render(long, &turns).unwrap_err(), RenderError::Failed);
        let wide = "{% for a in range(9999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}";
        assert_eq!(render(wide, &turns).unwrap_err(), RenderError::TooLong);
        let deep = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        assert_eq!(render(deep, &turns).unwrap_err(), RenderError::Failed);
        assert_eq!(ChatTemplate::parse(&"x".repeat(MAX_TEMPLATE + 1), "", "").unwrap_err(), ParseError::TooLong);
        assert_eq!(ChatTemplate::parse("{% for %}", "", "").unwrap_err(), ParseError::Syntax);
    }

    #[test]
    fn many_short_messages_are_written() {
        let turns: Vec<_> = (0..256).map(|number| turn(["user", "assistant"][number % 2], "1")).collect();
        assert!(render(CHATML, &turns).unwrap().len() > 256 * 30);
    }

    #[test]
    fn nothing_outside_is_reached() {
        for template in ["{% include 'chat' %}", "{% import 'chat' as c %}", "{% extends 'chat' %}"] {
            let rendered = ChatTemplate::parse(template, "", "").map(|parsed| parsed.render(&[turn("user", "x")]));
            assert!(!matches!(rendered, Ok(Ok(_))), "{template}");
        }
        assert_eq!(render("{{ open('/etc/passwd') }}", &[turn("user", "x")]).unwrap_err(), RenderError::Failed);
        assert_eq!(render("{{ strftime_now('%Y') }}", &[turn("user", "x")]).unwrap_err(), RenderError::Failed);
    }

    proptest::proptest! {
        /// A text of a conversation is a value, never template.
        #[test]
        fn texts_come_out_as_they_went_in(text in "\\PC{0,40}") {
            let rendered = render("{{ messages[0].content }}", &[turn("user", &text)]).unwrap();
            proptest::prop_assert_eq!(rendered, text);
        }
    }
}
