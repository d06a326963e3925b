//! The health check ports of Services whose traffic stays on its node: load balancers outside ask there which nodes have endpoints.
//! The answer is kube-proxy's, to the letter.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::connections::Connection;
use crate::handler::full;
use crate::shared::Shared;
use crate::web::reply::Reply;
use crate::web::serve;

/// Header: how much of the traffic this node wants.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Serves a connection to its end; `of` is the Service's namespace and name.
pub(super) async fn connection(
    shared: Arc<Shared>,
    of: Arc<(String, String)>,
    stream: TcpStream,
    connection: Connection,
) {
    let service = service_fn(|_: Request<Incoming>| {
        let answer = answer(&shared, &of);
        async move { Ok::<_, Infallible>(answer) }
    });
    serve::drive(&shared.limits, Version::HTTP_11, TokioIo::new(stream), service, &connection).await;
}

fn answer(shared: &Shared, (namespace, name): &(String, String)) -> Response<Reply> {
    let table = shared.table.load();
    let check = table.service(namespace, name).and_then(|service| service.route.health_check);
    let count = check.map_or(0, |check| check.local_endpoints);
    let text = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\
         \"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": true\n}}"
    );
    let mut response = Response::new(Reply::Own(full(text)));
    *response.status_mut() = if count > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, count.into());
    response
}
