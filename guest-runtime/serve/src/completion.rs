// SPDX-License-Identifier: Apache-2.0
//! Completions: whole or as events, each with its receipt.

use std::sync::Arc;

use attested_channel::{
    DeliveredReceipt,
    receipt::{SaidChoice, channel_id, response_bytes, salted},
};
use attester_protocol::ServingRequest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use engine_protocol::{Failure, ModelFacts, TokenLogprobs};
use http::{HeaderValue, Response, header};
use tokio::sync::mpsc;
use types::{Hex32, Sha256Digest};
use zeroize::Zeroizing;

use crate::{
    answer::{Events, Frame, RECEIPT_COMMENT, Usage},
    api::{AnswerBody, Proof, State, json, names, of_attester},
    choice::Choice,
    engine::{Asker, Generation, NotTaken, Step},
    error::ApiError,
    receipts::Reader,
    request::{ApiRequest, Kind},
    tools::Reading,
};

/// What the receipt of one answer says beside the answer.
pub(crate) struct Ticket {
    salt: Hex32,
    request: Sha256Digest,
    channel: Sha256Digest,
    evidence: Sha256Digest,
    reader: Reader,
}

impl Ticket {
    /// For the answer to a body that somebody sent on a connection with this proof.
    pub(crate) fn new(proof: &Proof, asker: &Asker, body: &[u8]) -> Result<Self, ApiError> {
        let salt = Hex32::new(random()?);
        let Proof { binding, evidence } = proof;
        let (request, channel) = (salted(&salt, body), channel_id(binding));
        let reader = asker.charge.as_ref().map(|charge| charge.account().number());
        Ok(Self { salt, request, channel, evidence: *evidence, reader })
    }
}

/// An answer as it grows.
struct Growing {
    choices: Vec<Choice>,
    /// Bytes of texts and of what belongs to them.
    bytes: usize,
    most: usize,
}

/// Answers a completion request that came on a connection with this proof.
pub(crate) async fn answer(
    state: &Arc<State>,
    kind: Kind,
    mut asker: Asker,
    proof: Proof,
    body: &[u8],
) -> Result<Response<AnswerBody>, ApiError> {
    let mut request = aside(body.len(), || ApiRequest::parse(kind, body, &state.limits))?;
    if !names(&state.model, &request.model) {
        return Err(ApiError::model_not_found());
    }
    let ModelFacts { context, vocab, .. } = state.engine.facts();
    if request.generate.logit_bias.iter().any(|bias| bias.token >= vocab) {
        let rule = format!("numbers of tokens below {vocab}, the size of the model's vocabulary, are expected");
        return Err(ApiError::invalid_value("logit_bias", &rule));
    }
    if let Some(charge) = &mut asker.charge {
        request.hold_to(charge.account().max_tokens())?;
        let generate = &request.generate;
        let each = generate.max_tokens.or(generate.most_tokens).unwrap_or(context).min(context);
        charge
            .reserve(estimate(generate.prompt.text_bytes()), u64::from(each).saturating_mul(generate.choices.into()))?;
        if !generate.logit_bias.is_empty() {
            charge.hide();
        }
    }
    // Of the context at least one token is the prompt's.
    if request.generate.max_tokens.is_some_and(|most| most >= context) {
        return Err(ApiError::of_engine(Failure::ContextOverflow));
    }
    if !request.has_seed {
        request.generate.sampling.seed = u64::from_ne_bytes(random()?);
    }
    let ticket = Ticket::new(&proof, &asker, body)?;
    let frame = Frame {
        kind: request.kind,
        id: format!("{}-{}", if kind == Kind::Chat { "chatcmpl" } else { "cmpl" }, hex::encode(random::<16>()?)),
        created: state.clock.unix(),
        model: state.model.to_string(),
        has_logprobs: request.generate.logprobs.is_some(),
    };
    let choices = (0..request.generate.choices).map(|_| Choice::new(request.reading)).collect();
    let growing = Growing { choices, bytes: 0, most: state.limits.answer_bytes };
    let mut generation = state.engine.generate(request.generate, asker).map_err(not_taken)?;
    // Whatever can be refused is refused before the head of an answer is sent.
    match generation.next().await {
        Step::Started => {}
        Step::Failed(failure) => return Err(ApiError::of_engine(failure)),
        Step::Text { .. } | Step::Ended { .. } | Step::Vector { .. } | Step::Done { .. } | Step::Lost => {
            return Err(ApiError::engine_failed());
        }
    }
    if request.stream {
        let has_tools = request.reading != Reading::Content;
        let events = Events { frame, include_usage: request.include_usage, pad: request.pad, has_tools };
        Ok(stream(Arc::clone(state), generation, growing, events, ticket))
    } else {
        whole(state, generation, growing, &frame, &ticket).await
    }
}

async fn whole(
    state: &Arc<State>,
    mut generation: Generation,
    mut growing: Growing,
    frame: &Frame,
    ticket: &Ticket,
) -> Result<Response<AnswerBody>, ApiError> {
    let usage = loop {
        match growing.advance(&mut generation).await? {
            Grown::Piece { choice, mut logprobs, .. } => growing.at(choice)?.logprobs.append(&mut logprobs),
            Grown::Ended { .. } => {}
            Grown::Done(usage) => break usage,
        }
    };
    let said = growing.said()?;
    let receipt = receipt_of_said(state, ticket, &frame.id, &said, usage).await?;
    let logprobs: Vec<_> = growing.choices.iter().map(|choice| choice.logprobs.as_slice()).collect();
    with_receipt(frame.completion(&said, &logprobs, usage), &receipt)
}

/// A whole answer with its receipt.
pub(crate) fn with_receipt(body: Vec<u8>, receipt: &str) -> Result<Response<AnswerBody>, ApiError> {
    let mut response = json(body);
    let value = HeaderValue::from_str(receipt).map_err(|_| ApiError::internal())?;
    response.headers_mut().insert(RECEIPT_COMMENT, value);
    Ok(response)
}

/// Does work on so many bytes. On many it takes a while: others need the thread.
pub(crate) fn aside<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes > LONG { tokio::task::block_in_place(work) } else { work() }
}

/// Tokens of so many bytes, before somebody counts them: as many as of English text.
pub(crate) fn estimate(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(BYTES_OF_A_TOKEN)).unwrap_or(u64::MAX)
}

/// Why the engine did not take a request.
pub(crate) fn not_taken(reason: NotTaken) -> ApiError {
    match reason {
        NotTaken::Busy => ApiError::busy(),
        NotTaken::Broken => ApiError::engine_failed(),
    }
}

fn stream(
    state: Arc<State>,
    generation: Generation,
    growing: Growing,
    events: Events,
    ticket: Ticket,
) -> Response<AnswerBody> {
    let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
    tokio::spawn(async move {
        // An error means that the client is gone; the generation was cancelled by dropping it.
        let _ = write_events(&state, generation, growing, events, &ticket, &sender).await;
    });
    let mut response = Response::new(AnswerBody::Events(receiver));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The client closed the connection.
struct Gone;

async fn write_events(
    state: &Arc<State>,
    generation: Generation,
    growing: Growing,
    mut events: Events,
    ticket: &Ticket,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), Gone> {
    for index in 0..growing.choices.len() {
        if let Some(event) = events.role(index) {
            send(sender, event).await?;
        }
    }
    match write_text(state, generation, growing, &mut events, ticket, sender).await? {
        Ok(()) => Ok(()),
        Err(error) => send(sender, Events::error(&error.to_json())).await,
    }
}

async fn write_text(
    state: &Arc<State>,
    mut generation: Generation,
    mut growing: Growing,
    events: &mut Events,
    ticket: &Ticket,
    sender: &mpsc::Sender<Bytes>,
) -> Result<Result<(), ApiError>, Gone> {
    let mut offsets = vec![0; growing.choices.len()];
    loop {
        let grown = tokio::select! {
            grown = growing.advance(&mut generation) => grown,
            () = sender.closed() => return Err(Gone),
        };
        match grown {
            Err(error) => return Ok(Err(error)),
            Ok(Grown::Piece { choice, content, logprobs }) => {
                if !(content.is_empty() && logprobs.is_empty()) {
                    send(sender, events.text(choice, &content, &logprobs, offsets.get_mut(choice))).await?;
                }
            }
            Ok(Grown::Ended { choice, rest }) => {
                let Some(said) = growing.choices.get(choice).and_then(|choice| choice.said.clone()) else {
                    return Ok(Err(ApiError::internal()));
                };
                if !rest.is_empty() {
                    send(sender, events.text(choice, &rest, &[], None)).await?;
                }
                if !said.tool_calls.is_empty() {
                    send(sender, events.calls(choice, &said.tool_calls)).await?;
                }
                send(sender, events.finish(choice, &said.finish_reason)).await?;
            }
            Ok(Grown::Done(usage)) => {
                let receipt = match growing.said() {
                    Ok(said) => receipt_of_said(state, ticket, &events.frame.id, &said, usage).await,
                    Err(error) => Err(error),
                };
                let receipt = match receipt {
                    Ok(receipt) => receipt,
                    Err(error) => return Ok(Err(error)),
                };
                send(sender, events.end(usage, &receipt)).await?;
                return Ok(Ok(()));
            }
        }
    }
}

async fn send(sender: &mpsc::Sender<Bytes>, bytes: Vec<u8>) -> Result<(), Gone> {
    sender.send(bytes.into()).await.map_err(|_| Gone)
}

/// What happened to an answer.
enum Grown {
    /// A choice has more content, or tokens.
    Piece { choice: usize, content: Zeroizing<String>, logprobs: Vec<TokenLogprobs> },
    /// A choice is complete; this content was held back.
    Ended { choice: usize, rest: Zeroizing<String> },
    /// All are.
    Done(Usage),
}

impl Growing {
    fn at(&mut self, choice: usize) -> Result<&mut Choice, ApiError> {
        self.choices.get_mut(choice).filter(|choice| choice.said.is_none()).ok_or_else(ApiError::engine_failed)
    }

    /// All choices, when they are complete.
    fn said(&self) -> Result<Vec<SaidChoice>, ApiError> {
        let said: Option<Vec<_>> = self.choices.iter().map(|choice| choice.said.clone()).collect();
        said.ok_or_else(ApiError::engine_failed)
    }

    /// One step of the engine.
    async fn advance(&mut self, generation: &mut Generation) -> Result<Grown, ApiError> {
        match generation.next().await {
            Step::Text { choice, text, logprobs } => {
                let entries = logprobs.iter().flat_map(|logprobs| logprobs.top.iter().chain([&logprobs.token]));
                let size = entries.fold(text.len(), |sum, entry| {
                    sum.saturating_add(LOGPROB_BYTES).saturating_add(entry.bytes.len().saturating_mul(4))
                });
                self.bytes = self.bytes.saturating_add(size);
                if self.bytes > self.most {
                    return Err(ApiError::answer_too_long());
                }
                let choice = usize::from(choice);
                let content = self.at(choice)?.push(&text);
                Ok(Grown::Piece { choice, content, logprobs })
            }
            Step::Ended { choice, reason } => {
                let choice = usize::from(choice);
                let rest = self.at(choice)?.end(reason)?;
                Ok(Grown::Ended { choice, rest })
            }
            Step::Done { prompt_tokens, cached_tokens, completion_tokens } => {
                Ok(Grown::Done(Usage::new(prompt_tokens, cached_tokens, completion_tokens)))
            }
            Step::Started | Step::Vector { .. } => Err(ApiError::engine_failed()),
            Step::Failed(failure) => Err(ApiError::of_engine(failure)),
            Step::Lost => Err(ApiError::too_slow()),
        }
    }
}

async fn receipt_of_said(
    state: &Arc<State>,
    ticket: &Ticket,
    id: &str,
    said: &[SaidChoice],
    usage: Usage,
) -> Result<String, ApiError> {
    let response = Zeroizing::new(response_bytes(said).map_err(|_| ApiError::internal())?);
    receipt(state, ticket, id, &response, usage.prompt_tokens(), usage.completion_tokens()).await
}

/// Has the receipt signed, keeps it, and gives it with its salt in base64.
///
/// Once the attester was asked, its chain goes on, whatever becomes of the client: so asking and keeping is a task of its
/// own, which outlives the connection and the patience of this function.
pub(crate) async fn receipt(
    state: &Arc<State>,
    ticket: &Ticket,
    id: &str,
    response: &[u8],
    prompt_tokens: u64,
    completion_tokens: u64,
) -> Result<String, ApiError> {
    let Ticket { salt, request, channel, evidence, reader } = *ticket;
    let response = salted(&salt, response);
    let asked = ServingRequest::SignReceipt { evidence, request, response, prompt_tokens, completion_tokens, channel };
    let place = Arc::clone(&state.signing).try_acquire_owned().map_err(|_| ApiError::attester_failed())?;
    let (keeper, id) = (Arc::clone(state), id.to_owned());
    let signing = tokio::spawn(async move {
        let signed = keeper.attester.sign_receipt(asked).await.map_err(|error| of_attester(&error))?;
        let public = signed.to_canonical().map_err(|_| ApiError::internal())?;
        keeper.receipts.keep(&id, reader, public.into());
        drop(place);
        Ok(signed)
    });
    let signed = tokio::time::timeout(state.limits.receipt, signing).await.map_err(|_| ApiError::attester_failed())?;
    let signed = signed.map_err(|_| ApiError::internal())??;
    let delivered = DeliveredReceipt::new(signed, salt).to_canonical().map_err(|_| ApiError::internal())?;
    Ok(STANDARD.encode(delivered))
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], ApiError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| ApiError::internal())?;
    Ok(bytes)
}

/// Events that wait for a slow reader before the engine's events do.
const EVENTS_AHEAD: usize = 16;
/// More bytes are read or written where they hold up nobody else.
const LONG: usize = 16 << 10;
const BYTES_OF_A_TOKEN: usize = 4;
/// What the JSON of a logarithmic probability takes beside its token.
const LOGPROB_BYTES: usize = 64;
