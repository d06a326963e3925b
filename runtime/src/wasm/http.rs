//! HTTP components: one request, one instance (or one that has served before, where the workload allows it).
//!
//! The guest runs on the caller's task: polled once, most guests have answered, and then neither a task nor a timer was
//! needed. A guest that streams goes on while its response's body is read ([`GuestBody`]), so that a slow reader slows
//! the guest and a reader that goes away ends it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, header};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use wasmtime::{AsContextMut as _, Engine, Store};
use wasmtime_wasi_http::handler::{Prepared, Proxy};
use wasmtime_wasi_http::p2::bindings::Proxy as ProxyP2;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use super::WasmConfig;
use super::account::{Account, Metered};
use super::body::{GuestBody, settled};
use super::command::{Failure, FailureKind};
use super::host::{Host, Sandbox, component_store, yield_at_ticks};
use super::outgoing::to_wasi_body;
use super::program::HttpPre;
use crate::spec::{Body, HandleError};

/// Instances kept for the next request where reuse is allowed.
const IDLE_INSTANCES_MAX: usize = 8;

/// What serves one container's requests.
pub(super) struct Server(Arc<Shared>);

struct Shared {
    pre: HttpPre,
    engine: Engine,
    sandbox: Arc<Sandbox>,
    account: Arc<Account>,
    killed: CancellationToken,
    reuse_requests_max: u32,
    idle: Mutex<Vec<Instance>>,
    permits: Arc<Semaphore>,
    requests_max: usize,
    waiting: AtomicUsize,
    requests_waiting_max: usize,
    request_ms_max: u64,
    /// Where a guest ends that goes on after its response.
    commands: Handle,
}

/// An instance with the number of requests it has served.
struct Instance {
    store: Store<Host>,
    proxy: Proxy,
    served: u32,
}

/// A guest at work; it has written its own failure into its log when this is done.
pub(super) type Guest = Metered<Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>>;

type Head = Result<Response<WasiBody>, ErrorCode>;

impl Server {
    pub(super) fn new(
        pre: HttpPre,
        engine: Engine,
        sandbox: Arc<Sandbox>,
        account: Arc<Account>,
        killed: CancellationToken,
        reuse_requests_max: u32,
        config: &WasmConfig,
    ) -> Server {
        let requests_max = config.requests_max.clamp(1, 1 << 16);
        Server(Arc::new(Shared {
            pre,
            engine,
            sandbox,
            account,
            killed,
            reuse_requests_max: reuse_requests_max.max(1),
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(requests_max)),
            requests_max,
            waiting: AtomicUsize::new(0),
            requests_waiting_max: config.requests_waiting_max,
            request_ms_max: config.request_ms_max,
            commands: config.commands.clone(),
        }))
    }

    /// Waits until no guest is at work.
    pub(super) async fn drained(&self) {
        // Never closed, so this only waits.
        let _ = self.0.permits.acquire_many(self.0.requests_max as u32).await;
        self.forget();
    }

    /// Drops the instances kept for later requests.
    pub(super) fn forget(&self) {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) async fn handle(&self, request: Request<Body>) -> Result<Response<Body>, HandleError> {
        let permit = self.admit().await?;
        self.0.serve(request, permit).await
    }

    async fn admit(&self) -> Result<OwnedSemaphorePermit, HandleError> {
        if let Ok(permit) = self.0.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        if self.0.waiting.fetch_add(1, SeqCst) >= self.0.requests_waiting_max {
            self.0.waiting.fetch_sub(1, SeqCst);
            return Err(HandleError::Busy);
        }
        let _waiting = Waiting(&self.0.waiting);
        let admitted = tokio::time::timeout(self.0.patience(), self.0.permits.clone().acquire_owned());
        tokio::select! {
            permit = admitted => permit.map_err(|_| HandleError::Busy)?.map_err(|_| HandleError::Stopping),
            () = self.0.killed.cancelled() => Err(HandleError::Stopping),
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// What comes first.
enum Step {
    Head(Head),
    Done(Result<(), Failure>),
    Killed,
}

impl Shared {
    fn patience(&self) -> Duration {
        Duration::from_millis(self.request_ms_max)
    }

    async fn serve(
        self: &Arc<Self>,
        mut request: Request<Body>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Response<Body>, HandleError> {
        self.name_host(&mut request);
        let is_head = request.method() == Method::HEAD;
        let (tell, mut told) = oneshot::channel::<Head>();
        let work: Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(self.clone().work(request.map(to_wasi_body), tell, permit));
        let mut guest: Guest = Metered::new(self.account.clone(), work);
        let mut open = true;
        let step = {
            let mut killed = pin!(self.killed.cancelled());
            let first = poll_fn(|cx| {
                if let Poll::Ready(done) = Pin::new(&mut guest).poll(cx) {
                    return Poll::Ready(Step::Done(done));
                }
                if open && let Poll::Ready(head) = Pin::new(&mut told).poll(cx) {
                    open = false;
                    if let Ok(head) = head {
                        return Poll::Ready(Step::Head(head));
                    }
                }
                killed.as_mut().poll(cx).map(|()| Step::Killed)
            });
            tokio::time::timeout(self.patience(), first).await
        };
        match step {
            Err(_) => Err(HandleError::TimedOut { request_ms_max: self.request_ms_max }),
            Ok(Step::Killed) => Err(HandleError::Stopping),
            Ok(Step::Done(done)) => answered(open.then(|| told.try_recv().ok()).flatten(), done),
            Ok(Step::Head(Err(code))) => Err(refused(&code)),
            Ok(Step::Head(Ok(response))) => {
                let rest = GuestBody::rest(guest, &self.killed, self.commands.clone(), self.patience());
                Ok(GuestBody::response(response, rest, is_head))
            }
        }
    }

    /// HTTP/1.0 clients may leave the host out; guests may not be without one.
    fn name_host(&self, request: &mut Request<Body>) {
        let named = request.headers().get(header::HOST).is_some_and(|host| host.to_str().is_ok());
        if request.uri().authority().is_none() && !named {
            let address = self.sandbox.network.address().to_string();
            let host = HeaderValue::from_str(&address).unwrap_or(HeaderValue::from_static("localhost"));
            request.headers_mut().insert(header::HOST, host);
        }
    }

    async fn work(
        self: Arc<Self>,
        request: Request<WasiBody>,
        tell: oneshot::Sender<Head>,
        _permit: OwnedSemaphorePermit,
    ) -> Result<(), Failure> {
        let worked = match self.instance().await {
            Ok(instance) => instance.serve(request, tell).await,
            Err(failure) => Err(failure),
        };
        match worked {
            Ok(instance) => {
                self.keep(instance);
                Ok(())
            }
            Err(failure) => {
                if let Some(log) = &failure.log {
                    self.sandbox.outlets.stderr.say(log.as_bytes()).await;
                }
                Err(failure)
            }
        }
    }

    async fn instance(&self) -> Result<Instance, Failure> {
        let kept = match self.reuse_requests_max {
            1 => None,
            _ => self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop(),
        };
        if let Some(mut instance) = kept {
            yield_at_ticks(&mut instance.store);
            return Ok(instance);
        }
        let mut store = component_store(&self.engine, &self.sandbox, &self.account);
        let proxy = match &self.pre {
            HttpPre::P2(pre) => pre.instantiate_async(&mut store).await.map(Proxy::P2),
            HttpPre::P3(pre) => pre.instantiate_async(&mut store).await.map(Proxy::P3),
        };
        Ok(Instance { store, proxy: proxy.map_err(Failure::starting)?, served: 0 })
    }

    fn keep(&self, mut instance: Instance) {
        instance.served += 1;
        if instance.served >= self.reuse_requests_max || self.killed.is_cancelled() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_INSTANCES_MAX {
            idle.push(instance);
        }
    }
}

impl Instance {
    /// Serves one request to the guest's own end, which may be after the response's.
    async fn serve(mut self, request: Request<WasiBody>, tell: oneshot::Sender<Head>) -> Result<Instance, Failure> {
        match &self.proxy {
            Proxy::P2(proxy) => serve_p2(&mut self.store, proxy, request, tell).await,
            Proxy::P3(_) => serve_p3(&mut self.store, &self.proxy, request, tell).await,
        }
        .map_err(Failure::running)?;
        Ok(self)
    }
}

async fn serve_p2(
    store: &mut Store<Host>,
    proxy: &ProxyP2,
    request: Request<WasiBody>,
    tell: oneshot::Sender<Head>,
) -> wasmtime::Result<()> {
    let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
    let answer = store.data_mut().http().new_response_outparam(tell)?;
    proxy.wasi_http_incoming_handler().call_handle(store, request, answer).await
}

async fn serve_p3(
    store: &mut Store<Host>,
    proxy: &Proxy,
    request: Request<WasiBody>,
    tell: oneshot::Sender<Head>,
) -> wasmtime::Result<()> {
    let (inner, answer) = futures::channel::oneshot::channel();
    let served = store.run_concurrent(async |accessor| {
        let prepared =
            accessor.with(|mut store| Prepared::new(store.as_context_mut(), proxy, request, Host::http, inner))?;
        let forward = async {
            if let Ok(Ok(response)) = answer.await {
                let _ = tell.send(Ok(response));
            }
        };
        let run = async {
            prepared.run(accessor, std::future::pending()).await?;
            // The body is still being produced.
            poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
            wasmtime::error::Ok(())
        };
        futures::future::join(run, forward).await.0
    });
    served.await?
}

/// The guest has ended: with a response, or without.
fn answered(head: Option<Head>, done: Result<(), Failure>) -> Result<Response<Body>, HandleError> {
    match (head, done) {
        // After the head a failure can only show in the body.
        (Some(Ok(response)), done) => {
            let failed = done.is_err_and(|failure| failure.broke_off());
            Ok(response.map(|body| settled(body, failed)))
        }
        (Some(Err(code)), _) => Err(refused(&code)),
        (None, Ok(())) => Err(HandleError::NoResponse { message: "it returned without setting a response".to_owned() }),
        (None, Err(failure)) => Err(match failure.kind {
            FailureKind::Starting => HandleError::Instantiate { detail: failure.end.message },
            FailureKind::Memory => HandleError::OutOfMemory,
            FailureKind::Trapped => HandleError::Trap { message: failure.end.message },
            FailureKind::Exited => HandleError::NoResponse { message: failure.end.message },
        }),
    }
}

fn refused(code: &ErrorCode) -> HandleError {
    HandleError::NoResponse { message: format!("it answered with the error {code:?}") }
}
