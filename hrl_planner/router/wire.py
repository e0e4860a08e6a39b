"""Names that Envoy's config and the picker must agree on.

The destination travels as the Gateway API Inference Extension has it: under one name, both as a
header and as dynamic metadata of the namespace `envoy.lb`.
"""

from __future__ import annotations

DESTINATION = "x-gateway-destination-endpoint"
FALLBACK = "x-gateway-fallback-endpoint"
WORKER = "x-hrl-worker"  # names the worker in the answer's headers
FLIGHT = "x-hrl-flight"  # number of the request, handed back by the access log
NAMESPACE = "envoy.lb"

REFUSED = "picker_"  # how the details of the picker's own answers begin

# Where the picker finds what it needs of a request's headers, without being sent the headers.
ATTRIBUTES = {
    "request_id": "request.id",
    "path": "request.url_path",
    "slo_class": "request.headers['x-slo-class']",
    "session": "request.headers['x-session-id']",
    "trace": "request.headers['traceparent']",
}
ATTRIBUTES_OF = "envoy.filters.http.ext_proc"

# Custom tags of the access log, microseconds since the request's first byte.
FIRST_BYTE_US = "first_byte_us"
LAST_BYTE_US = "last_byte_us"
TIME_TAGS = {
    FIRST_BYTE_US: "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)%",
    LAST_BYTE_US: "%COMMON_DURATION(DS_RX_BEG:US_RX_END:us)%",
}
