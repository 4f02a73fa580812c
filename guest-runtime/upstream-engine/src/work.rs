// SPDX-License-Identifier: Apache-2.0
//! One request, from its text to its last event.

use crate::{
    Answers, Lines, Model, ask,
    exchange::{Answered, Fault, ask as exchange},
};
use batching::Refused;
use engine_protocol::{Event, Failure, Form, Generate, Prompt};
use http::{Method, StatusCode};
use serde::Deserialize;
use std::{path::PathBuf, time::Duration};
use tokio::sync::{Notify, Semaphore, mpsc};
use zeroize::{Zeroize as _, Zeroizing};

/// A server that is healthy.
#[derive(Debug)]
pub(crate) struct Alive {
    pub(crate) socket: PathBuf,
    /// What it calls its model.
    pub(crate) name: String,
}

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) model: Model,
    pub(crate) context: u32,
    /// Patience with the server.
    pub(crate) silence: Duration,
    /// Lists of tokens are long: few are made at once.
    pub(crate) tokenizing: Semaphore,
    /// Told when the server kept silent.
    pub(crate) suspects: Notify,
}

/// The answer of `/tokenize`.
#[derive(Deserialize)]
struct Tokens {
    count: usize,
    tokens: Vec<u32>,
    max_model_len: Option<u64>,
}

impl Desk {
    /// Has a request answered. Gives its last event.
    ///
    /// # Errors
    /// Why there is no (further) answer.
    pub(crate) async fn answer(
        &self,
        alive: &Alive,
        mut request: Generate,
        events: &mpsc::Sender<Event>,
    ) -> Result<Event, Refused> {
        request.check().map_err(|_| Failure::InvalidRequest)?;
        if request.logit_bias.iter().any(|bias| bias.token >= self.model.vocab) {
            return Err(Failure::UnknownToken.into());
        }
        let form = batching::form(&request.form)?;
        let tokens = self.tokens(alive, &request.prompt).await?;
        wipe(&mut request.prompt);
        let prompt_tokens = u32::try_from(tokens.len()).map_err(|_| Failure::ContextOverflow)?;
        let refuse = |code| Refused { code, prompt_tokens: Some(prompt_tokens) };
        let room = self.context.checked_sub(prompt_tokens).filter(|room| *room > 0);
        let room = room.ok_or(refuse(Failure::ContextOverflow))?;
        let most = request.most_tokens.unwrap_or(room);
        let max_tokens = request.max_tokens.unwrap_or(room.min(most));
        if max_tokens > room {
            return Err(refuse(Failure::ContextOverflow));
        }
        let body = ask::complete(&alive.name, &request, &tokens, max_tokens).ok_or(refuse(Failure::EngineFailed))?;
        drop(tokens);
        let answered = self.exchange(alive, Method::POST, "/v1/completions", body).await.map_err(refuse)?;
        match (answered.status, answered.is_stream) {
            (StatusCode::OK, true) => {}
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _) => {
                return Err(refuse(Failure::QueueFull));
            }
            // All else in the request is as the server wants it.
            (StatusCode::BAD_REQUEST, _) if request.form != Form::Free => return Err(refuse(Failure::FormStuck)),
            _ => return Err(refuse(Failure::EngineFailed)),
        }
        let lost = |_| refuse(Failure::Cancelled);
        events.send(Event::Started { id: request.id, prompt_tokens }).await.map_err(lost)?;
        let mut answers = Answers::new(&request, form.as_ref(), prompt_tokens, max_tokens);
        self.follow(answered, &mut answers, events).await.map_err(refuse)?;
        answers.finish().map_err(refuse)
    }

    /// Passes on what the server says, until it says that nothing more comes.
    async fn follow(
        &self,
        mut answered: Answered,
        answers: &mut Answers,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), Failure> {
        let (mut lines, mut certain) = (Lines::default(), Vec::new());
        while !answers.is_done() {
            let bytes = answered.next().await.map_err(|fault| self.blame(fault))?.ok_or(Failure::EngineFailed)?;
            lines.push(&bytes).map_err(|_| Failure::EngineFailed)?;
            while let Some(data) = lines.next_data().map_err(|_| Failure::EngineFailed)? {
                let data = Zeroizing::new(data);
                let taken = answers.take(&data, &mut certain);
                for event in certain.drain(..) {
                    events.send(event).await.map_err(|_| Failure::Cancelled)?;
                }
                taken?;
            }
        }
        Ok(())
    }

    /// The tokens of a prompt, none of which is a control token that the prompt's own text became.
    async fn tokens(&self, alive: &Alive, prompt: &Prompt) -> Result<Zeroizing<Vec<u32>>, Failure> {
        // Tokens have a byte at least, as a rule; a template adds to them.
        if prompt.text_bytes() > MAX_TEXT_PER_TOKEN.saturating_mul(usize::try_from(self.context).unwrap_or(usize::MAX))
        {
            return Err(Failure::ContextOverflow);
        }
        let _place = self.tokenizing.acquire().await.map_err(|_| Failure::EngineFailed)?;
        let tokens = self.tokenized(alive, prompt).await?;
        let plain = self.tokenized(alive, &ask::plain(prompt)).await?;
        if tokens.is_empty() {
            return Err(Failure::InvalidRequest);
        }
        let is_same = self.model.count_controls(&tokens) == self.model.count_controls(&plain);
        if is_same { Ok(tokens) } else { Err(Failure::ControlToken) }
    }

    async fn tokenized(&self, alive: &Alive, prompt: &Prompt) -> Result<Zeroizing<Vec<u32>>, Failure> {
        let body = ask::tokenize(&alive.name, prompt).ok_or(Failure::EngineFailed)?;
        let answered = self.exchange(alive, Method::POST, "/tokenize", body).await?;
        match (answered.status, prompt) {
            (StatusCode::OK, _) => {}
            (StatusCode::BAD_REQUEST, Prompt::Chat(_)) => return Err(Failure::TemplateFailed),
            _ => return Err(Failure::EngineFailed),
        }
        let body = answered.whole(MAX_TOKENS_BODY).await.map_err(|fault| self.blame(fault))?;
        let Tokens { count, tokens, .. } = serde_json::from_slice(&body).map_err(|_| Failure::EngineFailed)?;
        let tokens = Zeroizing::new(tokens);
        let are_known = tokens.iter().all(|token| *token < self.model.vocab);
        if count == tokens.len() && are_known { Ok(tokens) } else { Err(Failure::EngineFailed) }
    }

    /// Whether the server can do what it will be asked: it knows one model, which has the context that is promised, and makes
    /// tokens that are the model's.
    pub(crate) async fn meet(&self, socket: PathBuf) -> Option<Alive> {
        let mut alive = Alive { socket, name: String::new() };
        let answered = self.exchange(&alive, Method::GET, "/v1/models", Zeroizing::default()).await.ok()?;
        let body = answered.whole(MAX_SMALL_BODY).await.ok()?;
        let Models { mut data } = serde_json::from_slice(&body).ok()?;
        let (Some(Named { id }), true) = (data.pop(), data.is_empty()) else { return None };
        alive.name = Some(id).filter(|name| name.len() <= MAX_NAME)?;
        let probe = ask::tokenize(&alive.name, &Prompt::Text("x".to_owned()))?;
        let answered = self.exchange(&alive, Method::POST, "/tokenize", probe).await.ok()?;
        let body = answered.whole(MAX_SMALL_BODY).await.ok()?;
        let Tokens { count, tokens, max_model_len } = serde_json::from_slice(&body).ok()?;
        let has_room = max_model_len.is_none_or(|most| most >= self.context.into());
        let are_known = tokens.iter().all(|token| *token < self.model.vocab);
        (has_room && are_known && count == tokens.len() && count > 0).then_some(alive)
    }

    /// Whether the server says that it is well.
    pub(crate) async fn is_well(&self, socket: &std::path::Path) -> bool {
        let patience = self.silence.min(HEALTH_PATIENCE);
        let answered = exchange(socket, patience, Method::GET, "/health", Zeroizing::default()).await;
        answered.is_ok_and(|answered| answered.status == StatusCode::OK)
    }

    async fn exchange(
        &self,
        alive: &Alive,
        method: Method,
        path: &str,
        body: Zeroizing<Vec<u8>>,
    ) -> Result<Answered, Failure> {
        exchange(&alive.socket, self.silence, method, path, body).await.map_err(|fault| self.blame(fault))
    }

    fn blame(&self, fault: Fault) -> Failure {
        if fault == Fault::Silent {
            self.suspects.notify_one();
        }
        Failure::EngineFailed
    }
}

/// The answer of `/v1/models`.
#[derive(Deserialize)]
struct Models {
    data: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    id: String,
}

/// Once it is tokens, nobody needs the text.
fn wipe(prompt: &mut Prompt) {
    match prompt {
        Prompt::Chat(messages) => messages.iter_mut().for_each(|message| message.content.zeroize()),
        Prompt::Text(text) => text.zeroize(),
    }
}

/// Longest list of tokens: what two million bytes of text may become, with a number of seven digits each.
const MAX_TOKENS_BODY: usize = 32 << 20;
/// Longest answer about the server itself.
const MAX_SMALL_BODY: usize = 256 << 10;
const MAX_NAME: usize = 256;
/// A text with more bytes for each token of the context does not fit, whatever the tokenizer.
const MAX_TEXT_PER_TOKEN: usize = 256;
/// Patience with a question that costs the server nothing.
const HEALTH_PATIENCE: Duration = Duration::from_secs(20);
/// Lists of tokens that are made at once.
pub(crate) const TOKENIZING: usize = 4;
