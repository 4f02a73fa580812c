// SPDX-License-Identifier: Apache-2.0
//! Chat completions: whole or as events, each with its receipt.

use std::{sync::Arc, time::Duration};

use attested_channel::{
    DeliveredReceipt,
    receipt::{channel_id, salted},
};
use attester_protocol::ServingRequest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use engine_protocol::FinishReason;
use http::{HeaderValue, Response, header};
use tokio::sync::mpsc;
use types::{Hex32, Sha256Digest};
use zeroize::Zeroizing;

use crate::{
    answer::{Events, Frame, RECEIPT_COMMENT, Usage},
    api::{AnswerBody, State, json, names, of_attester},
    engine::{Generation, NotTaken, Step},
    error::ApiError,
    request::ChatRequest,
};

/// What the receipt of one answer says beside the answer.
struct Ticket {
    salt: Hex32,
    request: Sha256Digest,
    channel: Sha256Digest,
}

/// Answers a chat completion request that came on a connection with this binding.
pub(crate) async fn answer(
    state: &Arc<State>,
    binding: [u8; 32],
    body: &[u8],
) -> Result<Response<AnswerBody>, ApiError> {
    let request = ChatRequest::parse(body, &state.limits)?;
    if !names(&state.model, &request.model) {
        return Err(ApiError::model_not_found());
    }
    let salt = Hex32::new(random()?);
    let ticket = Ticket { salt, request: salted(&salt, body), channel: channel_id(&binding) };
    let frame = Frame {
        id: format!("chatcmpl-{}", hex::encode(random::<16>()?)),
        created: state.clock.unix(),
        model: state.model.to_string(),
    };
    let mut generation = state.engine.generate(request.generate).map_err(|error| match error {
        NotTaken::Busy => ApiError::busy(),
        NotTaken::Broken => ApiError::engine_failed(),
    })?;
    // Whatever can be refused is refused before the head of an answer is sent.
    match generation.next().await {
        Step::Started => {}
        Step::Failed(failure) => return Err(ApiError::of_engine(failure)),
        Step::Text(_) | Step::Done { .. } | Step::Lost => return Err(ApiError::engine_failed()),
    }
    if request.stream {
        let events = Events { frame, include_usage: request.include_usage, pad: request.pad };
        Ok(stream(Arc::clone(state), generation, events, ticket))
    } else {
        whole(state, generation, &frame, &ticket).await
    }
}

async fn whole(
    state: &State,
    mut generation: Generation,
    frame: &Frame,
    ticket: &Ticket,
) -> Result<Response<AnswerBody>, ApiError> {
    let mut text = Zeroizing::new(String::new());
    let (reason, usage) = loop {
        if let Some(end) = advance(&mut generation, &mut text, state.limits.answer_bytes).await?.1 {
            break end;
        }
    };
    let receipt = receipt(state, ticket, &frame.id, &text, usage).await?;
    let mut response = json(frame.completion(&text, reason, usage));
    let value = HeaderValue::from_str(&receipt).map_err(|_| ApiError::internal())?;
    response.headers_mut().insert(RECEIPT_COMMENT, value);
    Ok(response)
}

fn stream(state: Arc<State>, generation: Generation, events: Events, ticket: Ticket) -> Response<AnswerBody> {
    let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
    tokio::spawn(async move {
        // An error means that the client is gone; the generation was cancelled by dropping it.
        let _ = write_events(&state, generation, &events, &ticket, &sender).await;
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
    state: &State,
    generation: Generation,
    events: &Events,
    ticket: &Ticket,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), Gone> {
    send(sender, events.role()).await?;
    match write_text(state, generation, events, ticket, sender).await? {
        Ok(()) => Ok(()),
        Err(error) => send(sender, Events::error(&error.to_json())).await,
    }
}

async fn write_text(
    state: &State,
    mut generation: Generation,
    events: &Events,
    ticket: &Ticket,
    sender: &mpsc::Sender<Bytes>,
) -> Result<Result<(), ApiError>, Gone> {
    let mut text = Zeroizing::new(String::new());
    loop {
        let step = tokio::select! {
            step = advance(&mut generation, &mut text, state.limits.answer_bytes) => step,
            () = sender.closed() => return Err(Gone),
        };
        let (piece, end) = match step {
            Ok(step) => step,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(piece) = piece {
            send(sender, events.text(&piece)).await?;
        }
        if let Some((reason, usage)) = end {
            let receipt = match receipt(state, ticket, &events.frame.id, &text, usage).await {
                Ok(receipt) => receipt,
                Err(error) => return Ok(Err(error)),
            };
            send(sender, events.end(reason, usage)).await?;
            send(sender, events.done(&receipt)).await?;
            return Ok(Ok(()));
        }
    }
}

async fn send(sender: &mpsc::Sender<Bytes>, bytes: Vec<u8>) -> Result<(), Gone> {
    sender.send(bytes.into()).await.map_err(|_| Gone)
}

type End = (FinishReason, Usage);

/// One step of the engine: a piece of text, which `text` collects, or the end.
async fn advance(
    generation: &mut Generation,
    text: &mut String,
    most: usize,
) -> Result<(Option<Zeroizing<String>>, Option<End>), ApiError> {
    match generation.next().await {
        Step::Text(piece) => {
            if text.len().saturating_add(piece.len()) > most {
                return Err(ApiError::answer_too_long());
            }
            text.push_str(&piece);
            Ok((Some(piece), None))
        }
        Step::Done { reason: FinishReason::Cancelled, .. } | Step::Started => Err(ApiError::engine_failed()),
        Step::Done { reason, prompt_tokens, completion_tokens } => {
            Ok((None, Some((reason, Usage::new(prompt_tokens, completion_tokens)))))
        }
        Step::Failed(failure) => Err(ApiError::of_engine(failure)),
        Step::Lost => Err(ApiError::too_slow()),
    }
}

/// Has the receipt signed, keeps it, and gives it with its salt in base64.
async fn receipt(state: &State, ticket: &Ticket, id: &str, text: &str, usage: Usage) -> Result<String, ApiError> {
    let Ticket { salt, request, channel } = *ticket;
    let asked = ServingRequest::SignReceipt {
        request,
        response: salted(&salt, text.as_bytes()),
        prompt_tokens: usage.prompt_tokens(),
        completion_tokens: usage.completion_tokens(),
        channel,
    };
    let signing = tokio::time::timeout(RECEIPT_PATIENCE, state.attester.sign_receipt(asked));
    let signed = signing.await.map_err(|_| ApiError::attester_failed())?.map_err(|error| of_attester(&error))?;
    let public = signed.to_canonical().map_err(|_| ApiError::internal())?;
    state.receipts.keep(id, public.into());
    let delivered = DeliveredReceipt::new(signed, salt).to_canonical().map_err(|_| ApiError::internal())?;
    Ok(STANDARD.encode(delivered))
}

fn random<const N: usize>() -> Result<[u8; N], ApiError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| ApiError::internal())?;
    Ok(bytes)
}

/// Events that wait for a slow reader before the engine's events do.
const EVENTS_AHEAD: usize = 16;
const RECEIPT_PATIENCE: Duration = Duration::from_secs(10);
