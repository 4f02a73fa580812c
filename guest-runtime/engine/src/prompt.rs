// SPDX-License-Identifier: Apache-2.0
//! Conversations as tokens.

use crate::Weights;
use engine_protocol::{Failure, Message};
use llama_cpp_2::{model::LlamaChatMessage, token::LlamaToken};

impl Weights {
    /// The conversation as the model's chat template writes it, up to where the assistant speaks.
    fn render(&self, messages: &[Message]) -> Result<String, Failure> {
        let chat = messages
            .iter()
            .map(|message| LlamaChatMessage::new(message.role.name().into(), message.content.clone()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Failure::InvalidRequest)?;
        self.model.apply_chat_template(&self.template, &chat, true).map_err(|_| Failure::TemplateFailed)
    }

    /// The tokens of a conversation. A control token comes from the template only: where a message spells one out,
    /// it is taken as ordinary text, so that nobody can close their message and speak in another role.
    pub(crate) fn chat_tokens(&self, messages: &[Message]) -> Result<Vec<LlamaToken>, Failure> {
        let vocab = self.model.vocab();
        let rendered = self.render(messages)?;
        let skeleton = self.render(&placeholders(messages))?;
        if self.count_controls(&rendered) == self.count_controls(&skeleton) {
            return Ok(vocab.tokenize(rendered.as_bytes(), true, true));
        }
        let mut tokens = Vec::new();
        for (position, part) in parts(&skeleton, messages).into_iter().enumerate() {
            let (text, is_template) = match part {
                Part::Template(text) => (text, true),
                Part::Content(text) => (text, false),
            };
            vocab.tokenize_into(text.as_bytes(), &mut tokens, position == 0, is_template);
        }
        Ok(tokens)
    }

    /// The tokens of a text, behind the one that begins every text of this model, if it has one.
    pub(crate) fn text_tokens(&self, text: &str) -> Vec<LlamaToken> {
        self.model.vocab().tokenize(text.as_bytes(), true, false)
    }

    fn count_controls(&self, text: &str) -> usize {
        self.controls.iter().map(|control| text.matches(control.as_str()).count()).sum()
    }
}

enum Part<'a> {
    Template(&'a str),
    Content(&'a str),
}

/// The conversation with a mark in the place of each text.
fn placeholders(messages: &[Message]) -> Vec<Message> {
    let mark = |(index, message): (usize, &Message)| Message {
        role: message.role,
        content: format!("{MARK_START}{index}{MARK_END}"),
    };
    messages.iter().enumerate().map(mark).collect()
}

/// Splits a rendered conversation of [`placeholders`], and puts the texts back.
fn parts<'a>(skeleton: &'a str, messages: &'a [Message]) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    let mut rest = skeleton;
    while let Some((before, mark, after)) = next_mark(rest) {
        parts.push(Part::Template(before));
        parts.extend(mark.parse().ok().and_then(|index: usize| messages.get(index)).map(|m| Part::Content(&m.content)));
        rest = after;
    }
    parts.push(Part::Template(rest));
    parts
}

fn next_mark(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once(MARK_START)?;
    let (mark, after) = rest.split_once(MARK_END)?;
    Some((before, mark, after))
}

/// Private-use characters, which no chat template holds.
const MARK_START: char = '\u{e000}';
const MARK_END: char = '\u{e001}';
#[cfg(test)]
mod tests {
    use super::*;
    use engine_protocol::Role;

    #[test]
    fn texts_return_to_their_places_whatever_they_hold() {
        let content = |text: &str| Message { role: Role::User, content: text.into() };
        let messages = [content("\u{e000}1\u{e001}"), content("two")];
        let skeleton: String = placeholders(&messages).iter().map(|m| format!("<s>{}</s>", m.content)).collect();
        let joined: Vec<_> = parts(&skeleton, &messages)
            .into_iter()
            .map(|part| match part {
                Part::Template(text) => format!("T:{text}"),
                Part::Content(text) => format!("C:{text}"),
            })
            .collect();
        assert_eq!(joined, ["T:<s>", "C:\u{e000}1\u{e001}", "T:</s><s>", "C:two", "T:</s>"]);
    }
}
