// SPDX-License-Identifier: Apache-2.0
//! Conversations as tokens.

use crate::Weights;
use chat_template::{ChatTemplate, RenderError, Turn};
use engine_protocol::{Failure, Message};
use llama_cpp_2::model::{LlamaChatMessage, LlamaChatTemplate, LlamaModel};
use llama_cpp_2::token::LlamaToken;

/// How conversations are written.
pub(crate) enum Template {
    /// The model's own template. With it, what stands before each text of the model if the tokenizer puts it there, too.
    Own(Box<ChatTemplate>, Option<String>),
    /// llama.cpp's rendering of the family that it takes the template for.
    Known(LlamaChatTemplate),
}

impl Template {
    /// The model's own template where it can be rendered here, else llama.cpp's for it. None where the model has none.
    pub(crate) fn of(model: &LlamaModel) -> Option<Self> {
        let template = model.chat_template(None).ok()?;
        Some(Self::own(model, &template).unwrap_or(Self::Known(template)))
    }

    fn own(model: &LlamaModel, template: &LlamaChatTemplate) -> Option<Self> {
        let vocab = model.vocab();
        // A model without such a token says -1.
        let text = |token: LlamaToken| {
            let text = (token.0 >= 0).then(|| vocab.text(token)).flatten();
            text.and_then(|text| text.to_str().ok()).unwrap_or_default()
        };
        let bos = text(vocab.bos());
        let own = ChatTemplate::parse(template.to_str().ok()?, bos, text(vocab.eos())).ok()?;
        let turn = |role| Turn { role, content: "x" };
        own.render(&[turn("user")]).ok()?;
        // Others it may refuse, but not fail at.
        for turns in [&["system", "user"][..], &["user", "assistant", "user"], &["system", "user", "assistant", "user"]]
        {
            let turns: Vec<_> = turns.iter().copied().map(turn).collect();
            if !matches!(own.render(&turns), Ok(_) | Err(RenderError::Refused)) {
                return None;
            }
        }
        let twice = (vocab.should_add_bos() && !bos.is_empty()).then(|| bos.to_owned());
        Some(Self::Own(Box::new(own), twice))
    }
}

impl Weights {
    /// The conversation as the model's chat template writes it, up to where the assistant speaks.
    fn render(&self, messages: &[Message]) -> Result<String, Failure> {
        match &self.template {
            Template::Own(template, twice) => {
                let turns: Vec<_> = messages
                    .iter()
                    .map(|message| Turn { role: message.role.name(), content: &message.content })
                    .collect();
                let text = template.render(&turns).map_err(|_| Failure::TemplateFailed)?;
                let rest = twice.as_deref().and_then(|bos| text.strip_prefix(bos)).map(str::to_owned);
                Ok(rest.unwrap_or(text))
            }
            Template::Known(template) => {
                let message =
                    |message: &Message| LlamaChatMessage::new(message.role.name().into(), message.content.clone());
                let chat: Result<Vec<_>, _> = messages.iter().map(message).collect();
                let chat = chat.map_err(|_| Failure::InvalidRequest)?;
                self.model.apply_chat_template(template, &chat, true).map_err(|_| Failure::TemplateFailed)
            }
        }
    }

    /// The tokens of a conversation. A control token comes from the template only: where a message spells one out,
    /// it is taken as ordinary text, so that nobody can close their message and speak in another role.
    pub(crate) fn chat_tokens(&self, messages: &[Message]) -> Result<Vec<LlamaToken>, Failure> {
        let vocab = self.model.vocab();
        let rendered = self.render(messages)?;
        let skeleton = self.render(&placeholders(messages))?;
        // Where no message spells one out, all are the template's. Equal numbers would not say so: a template may leave out
        // one of its own for what a message says, or for an empty one.
        let is_spelled = messages.iter().any(|message| !self.controls_in(&message.content).is_empty());
        if !is_spelled && self.controls_in(&rendered) == self.controls_in(&skeleton) {
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

    /// The control tokens that are spelled out in a text, in their order.
    fn controls_in(&self, text: &str) -> Vec<&str> {
        let places = self
            .controls
            .iter()
            .flat_map(|control| text.match_indices(control.as_str()).map(move |(place, _)| (place, control.as_str())));
        let mut places: Vec<_> = places.collect();
        places.sort_unstable();
        places.into_iter().map(|(_, control)| control).collect()
    }
}

enum Part<'a> {
    Template(&'a str),
    Content(&'a str),
}

/// The conversation with a mark in the place of each text.
fn placeholders(messages: &[Message]) -> Vec<Message> {
    // A template may leave out a message without text: so it does here.
    let mark = |(index, message): (usize, &Message)| Message {
        role: message.role,
        content: match message.content.trim() {
            "" => message.content.clone(),
            _ => format!("{MARK_START}{index}{MARK_END}"),
        },
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

    /// A template may leave out a message without text; with a mark it would not.
    #[test]
    fn a_message_without_text_gets_no_mark() {
        let content = |text: &str| Message { role: Role::User, content: text.into() };
        let messages = [content("a"), content(""), content(" \n"), content("b")];
        let skeleton: Vec<_> = placeholders(&messages).into_iter().map(|message| message.content).collect();
        assert_eq!(skeleton, ["\u{e000}0\u{e001}", "", " \n", "\u{e000}3\u{e001}"]);
    }
}
