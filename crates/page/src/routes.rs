//! What is answered to which request.
//!
//! Invariant: nothing but the form of the token takes a body, and nothing that is asked for changes anything. Every
//! request is held against the host's name and the token before anything is done for it. Deliberately not here:
//! connections (server).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Form, Path, Query, Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, LOCATION, RETRY_AFTER, SET_COOKIE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};

use ckptd_plot::draw;
use ckptd_plot::picture::{PictureText, picture};
use ckptd_plot::theme::PictureTheme;

use crate::access::PageAccess;
use crate::assets::{self, FILES, PageFile};
use crate::board::{JobBoard, JobNow};
use crate::limits::AnswerBudget;
use crate::metrics::{self, MetricsFormat};

/// Largest form that is read, in bytes.
const MAX_FORM: usize = 4096;
/// How long a form may take to come.
const FORM_PATIENCE: Duration = Duration::from_secs(5);
/// How long an answer waits for what is new.
const PATIENCE: Duration = Duration::from_secs(3);
/// A stream on which nothing happens says so after this time.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Streams at a time.
const MAX_STREAMS: usize = 16;
const HTML: &str = "text/html; charset=utf-8";

/// What all answers share.
pub(crate) struct PageState {
    board: JobBoard,
    access: PageAccess,
    budget: AnswerBudget,
    streams: Arc<Semaphore>,
    /// One picture is drawn at a time.
    drawing: Semaphore,
}

type Shared = State<Arc<PageState>>;

/// The page of the jobs on `board`.
pub(crate) fn router(board: JobBoard, access: PageAccess) -> Router {
    let state = Arc::new(PageState {
        board,
        access,
        budget: AnswerBudget::new(),
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        drawing: Semaphore::new(1),
    });
    let mut open = Router::new().route("/login", post(login));
    for file in FILES {
        open = open.route(&format!("/{}", file.name), get(async move || asset(file)));
    }
    Router::new()
        .route("/", get(start))
        .route("/events", get(all_events))
        .route("/metrics", get(all_metrics))
        .route("/jobs/{n}/", get(job))
        .route("/jobs/{n}/events", get(job_events))
        .route("/jobs/{n}/picture.svg", get(job_picture))
        .route("/jobs/{n}/status.json", get(job_status))
        .route_layer(middleware::from_fn_with_state(state.clone(), admit))
        .merge(open.route_layer(middleware::from_fn_with_state(state.clone(), ration)))
        .fallback(async || (StatusCode::NOT_FOUND, "there is nothing here\n"))
        .layer(DefaultBodyLimit::max(MAX_FORM))
        .layer(middleware::from_fn_with_state(state.clone(), guard))
        .with_state(state)
}

/// First of all: was this machine meant, and is nothing to be changed?
async fn guard(State(state): Shared, request: Request, next: Next) -> Response {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD | Method::POST);
    let mut response = if !state.access.is_own_host(request.headers()) {
        let why = "this name is not one of this machine; [status] http_hosts or --host takes further names\n";
        (StatusCode::MISDIRECTED_REQUEST, why).into_response()
    } else if is_read {
        next.run(request).await
    } else {
        (StatusCode::METHOD_NOT_ALLOWED, "nothing here can be changed\n").into_response()
    };
    response.headers_mut().extend(assets::HEADERS.map(|(name, value)| (Some(name), value)));
    response
}

/// What needs no token is not given without end.
async fn ration(State(state): Shared, request: Request, next: Next) -> Response {
    if state.access.allows(request.headers()) || state.budget.take() { next.run(request).await } else { too_many() }
}

/// The token.
async fn admit(State(state): Shared, request: Request, next: Next) -> Response {
    if state.access.allows(request.headers()) {
        return next.run(request).await;
    }
    if !state.budget.take() {
        return too_many();
    }
    let wants_page = request.headers().get(ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"text/html"));
    if wants_page {
        return login_page(request.uri().path(), "");
    }
    let why = "a token is needed: Authorization: Bearer TOKEN, or log in on the page\n";
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], why).into_response()
}

fn too_many() -> Response {
    (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "1")], "too many requests\n").into_response()
}

/// The form of the token, whose address depends on how deep `path` lies.
fn login_page(path: &str, note: &str) -> Response {
    let depth = path.matches('/').count().saturating_sub(1);
    let root = if depth == 0 { "./".to_owned() } else { "../".repeat(depth) };
    let text = assets::LOGIN.replace("ROOT", &root).replace("NOTE", note);
    (StatusCode::UNAUTHORIZED, [(CONTENT_TYPE, HTML), (WWW_AUTHENTICATE, "Bearer")], text).into_response()
}

#[derive(Deserialize)]
struct LoginForm {
    token: String,
}

async fn login(State(state): Shared, request: Request) -> Response {
    use axum::extract::FromRequest;
    let form = tokio::time::timeout(FORM_PATIENCE, Form::<LoginForm>::from_request(request, &())).await;
    let Ok(Ok(Form(form))) = form else {
        return (StatusCode::BAD_REQUEST, "this is not the form of the token\n").into_response();
    };
    if !state.access.is_token(&form.token) {
        return login_page("/login", "That is not the token.");
    }
    let mut response = (StatusCode::SEE_OTHER, [(LOCATION, "./")]).into_response();
    let cookie = state.access.set_cookie().and_then(|cookie| HeaderValue::from_str(&cookie).ok());
    response.headers_mut().extend(cookie.map(|cookie| (SET_COOKIE, cookie)));
    response
}

fn asset(file: PageFile) -> Response {
    ([(CONTENT_TYPE, file.content_type)], file.text).into_response()
}

async fn start(State(state): Shared) -> Response {
    if state.board.len() == 1 {
        return (StatusCode::SEE_OTHER, [(LOCATION, "jobs/0/")]).into_response();
    }
    ([(CONTENT_TYPE, HTML)], assets::JOBS).into_response()
}

async fn job(State(state): Shared, Path(n): Path<usize>) -> Response {
    if n >= state.board.len() {
        return (StatusCode::NOT_FOUND, "there is no such job\n").into_response();
    }
    ([(CONTENT_TYPE, HTML)], assets::JOB).into_response()
}

fn unknown() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "nothing is known of the job yet\n").into_response()
}

async fn job_status(State(state): Shared, Path(n): Path<usize>) -> Response {
    match state.board.now(n, PATIENCE).await {
        Some(now) => ([(CONTENT_TYPE, "application/json")], now.view_json.to_string()).into_response(),
        None => unknown(),
    }
}

async fn all_metrics(State(state): Shared, headers: HeaderMap) -> Response {
    let mut jobs = Vec::new();
    for n in 0..state.board.len() {
        jobs.extend(state.board.now(n, PATIENCE).await);
    }
    let format = MetricsFormat::preferred(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()));
    let measured: Vec<_> = jobs.iter().map(|now| now.measured()).collect();
    ([(CONTENT_TYPE, format.content_type())], metrics::exposition(&measured, format)).into_response()
}

#[derive(Deserialize)]
struct PictureQuery {
    theme: Option<String>,
}

async fn job_picture(State(state): Shared, Path(n): Path<usize>, Query(query): Query<PictureQuery>) -> Response {
    let (Ok(_place), Some(now)) = (state.drawing.acquire().await, state.board.now(n, PATIENCE).await) else {
        return unknown();
    };
    let theme = if query.theme.as_deref() == Some("dark") { PictureTheme::dark() } else { PictureTheme::light() };
    let drawn = tokio::task::spawn_blocking(move || {
        let text = PictureText { title: now.view.name.clone(), is_running: now.view.is_live };
        draw::svg(&picture(&now.overview, &text, &theme))
    });
    match drawn.await {
        Ok(Ok(svg)) => ([(CONTENT_TYPE, "image/svg+xml")], svg).into_response(),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "the picture could not be drawn\n").into_response(),
    }
}

type JobReceiver = watch::Receiver<Option<Arc<JobNow>>>;

/// Waits until something is new; `false`: nothing will be any more.
async fn any_changed(receivers: &mut [JobReceiver]) -> bool {
    let changes = receivers.iter_mut().map(|receiver| Box::pin(receiver.changed()));
    futures_util::future::select_all(changes).await.0.is_ok()
}

/// A stream of events: `next` says what is new, from what was sent last.
fn event_stream(
    state: &Arc<PageState>,
    receivers: Vec<JobReceiver>,
    next: impl Fn(&[Option<Arc<JobNow>>], &[Option<Arc<JobNow>>]) -> String + Send + 'static,
) -> Response {
    let Ok(place) = state.streams.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "10")], "too many are looking\n").into_response();
    };
    let sent = vec![None; receivers.len()];
    let follower = (state.board.follow(), place);
    let events = stream::unfold((receivers, sent, follower, next), async |(mut receivers, sent, follower, next)| {
        if sent.iter().any(Option::is_some) {
            match tokio::time::timeout(KEEP_ALIVE, any_changed(&mut receivers)).await {
                Ok(true) => {}
                // The board is gone.
                Ok(false) => return None,
                Err(_) => {
                    let quiet = Bytes::from_static(b": nothing new\n\n");
                    return Some((Ok::<_, Infallible>(quiet), (receivers, sent, follower, next)));
                }
            }
        } else if let Some(first) = receivers.first_mut() {
            let _ = tokio::time::timeout(PATIENCE, first.wait_for(Option::is_some)).await;
        }
        let now: Vec<Option<Arc<JobNow>>> =
            receivers.iter_mut().map(|receiver| receiver.borrow_and_update().clone()).collect();
        let text = next(&sent, &now);
        let text = if text.is_empty() { ": nothing new\n\n".to_owned() } else { text };
        Some((Ok(Bytes::from(text)), (receivers, now, follower, next)))
    });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

fn event(name: &str, json: &str) -> String {
    format!("event: {name}\ndata: {json}\n\n")
}

async fn job_events(State(state): Shared, Path(n): Path<usize>) -> Response {
    let Some(receiver) = state.board.watch(n) else {
        return (StatusCode::NOT_FOUND, "there is no such job\n").into_response();
    };
    // What was known last may be old.
    state.board.now(n, PATIENCE).await;
    event_stream(&state, vec![receiver], |sent, now| {
        let (Some(before), Some(Some(now))) = (sent.first(), now.first()) else { return String::new() };
        let is_new = |of: fn(&JobNow) -> &Arc<str>| before.as_ref().is_none_or(|before| of(before) != of(now));
        let mut text = String::new();
        if is_new(|now| &now.view_json) {
            text += &event("job", &now.view_json);
        }
        if is_new(|now| &now.curve_json) {
            text += &event("curve", &now.curve_json);
        }
        text
    })
}

async fn all_events(State(state): Shared) -> Response {
    // One look is at all of them.
    state.board.now(0, PATIENCE).await;
    let receivers = (0..state.board.len()).filter_map(|n| state.board.watch(n)).collect();
    let names = state.board.names().to_vec();
    event_stream(&state, receivers, move |_, now| {
        let brief = |(n, (name, now)): (usize, (&String, &Option<Arc<JobNow>>))| {
            let view = now.as_ref().map(|now| {
                let mut view = now.view.clone();
                (view.snapshots, view.sessions) = (Vec::new(), Vec::new());
                view
            });
            serde_json::json!({ "n": n, "name": name, "job": view })
        };
        let all: Vec<serde_json::Value> = names.iter().zip(now).enumerate().map(brief).collect();
        event("jobs", &serde_json::Value::from(all).to_string())
    })
}
