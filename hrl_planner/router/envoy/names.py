"""The contract between Envoy and the picker: what either calls the things they tell each other.

The destination travels as the Gateway API Inference Extension has it: under one name, both as a
header and as dynamic metadata.
"""

from __future__ import annotations

DESTINATION = "x-gateway-destination-endpoint"
FALLBACK = "x-gateway-fallback-endpoint"
WORKER = "x-hrl-worker"  # name of the worker, also a header of the answer
FLIGHT = "x-hrl-flight"  # number of the request, which the access log hands back
# Namespace of the dynamic metadata in which the picker answers with the names above.
METADATA = "envoy.lb"
# CEL expressions; ext_proc sends those that have a value, under these very names.
ATTRIBUTES = {
    "request_id": "request.id",
    "path": "request.url_path",
    "slo_class": "request.headers['x-slo-class']",
    "session": "request.headers['x-session-id']",
    "trace": "request.headers['traceparent']",
}
# Where the picker finds them.
ATTRIBUTES_OF = "envoy.filters.http.ext_proc"
# What the `details` of the picker's own answers (immediate responses) begin with.
REFUSED = "picker_"
ACCESS_LOG_NAME = "hrl-planner"
# What the access log adds to each ended request. Times are in microseconds since the request's
# first byte, absent where the request did not come that far.
FIRST_BYTE_US = "first_byte_us"
LAST_BYTE_US = "last_byte_us"
ACCESS_LOG_TAGS = {
    "request_id": "%REQ(x-request-id)%",
    "destination": f"%DYNAMIC_METADATA({METADATA}:{DESTINATION})%",
    "worker": f"%DYNAMIC_METADATA({METADATA}:{WORKER})%",
    "upstream": "%UPSTREAM_REMOTE_ADDRESS%",
    FIRST_BYTE_US: "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)%",
    LAST_BYTE_US: "%COMMON_DURATION(DS_RX_BEG:US_RX_END:us)%",
    "total_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
}
