"""The contract between Envoy and the picker: what either calls the things they tell each other."""

from __future__ import annotations

DESTINATION = "x-gateway-destination-endpoint"
FALLBACK = "x-gateway-fallback-endpoint"
# Namespace of the dynamic metadata in which the picker answers with the two names above.
METADATA = "envoy.lb"
# CEL expressions; ext_proc sends those that have a value, under these very names.
REQUEST_ATTRIBUTES = (
    "request.id",
    "request.path",
    "request.headers['x-session-id']",
    "request.headers['traceparent']",
)
# What the `details` of the picker's own answers (immediate responses) begin with.
REFUSED = "picker_"
ACCESS_LOG_NAME = "hrl-planner"
# What the access log adds to each ended request. Times are in microseconds, absent where the
# request did not come that far.
ACCESS_LOG_TAGS = {
    "request_id": "%REQ(x-request-id)%",
    "destination": f"%DYNAMIC_METADATA({METADATA}:{DESTINATION})%",
    "upstream": "%UPSTREAM_REMOTE_ADDRESS%",
    "first_byte_us": "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)%",
    "total_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
}
