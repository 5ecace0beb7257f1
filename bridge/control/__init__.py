"""The control API: dial, list, show, hang up; and Twilio's reports on the calls that were dialled.

`control_blueprint` makes the routes; what it needs to know of the rest of the application is the
`ControlHost` that is passed to it.
"""

from bridge.control.access import Gate, Refusal, Seen
from bridge.control.api import TWILIO_ENDPOINTS, control_blueprint
from bridge.control.dialling import (
    AnswerWith,
    BadRequest,
    OutboundCall,
    outbound_parameters,
    with_twiml,
    with_webhook,
)
from bridge.control.host import (
    NO_CREDENTIALS,
    ControlHost,
    DialPolicy,
    DialRefused,
    LiveCall,
    NoRecords,
    Records,
    SettingsPolicy,
)
from bridge.control.status import Progress, StatusUpdate, fold

__all__ = [
    "NO_CREDENTIALS",
    "TWILIO_ENDPOINTS",
    "AnswerWith",
    "BadRequest",
    "ControlHost",
    "DialPolicy",
    "DialRefused",
    "Gate",
    "LiveCall",
    "NoRecords",
    "OutboundCall",
    "Progress",
    "Records",
    "Refusal",
    "Seen",
    "SettingsPolicy",
    "StatusUpdate",
    "control_blueprint",
    "fold",
    "outbound_parameters",
    "with_twiml",
    "with_webhook",
]
