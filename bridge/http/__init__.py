"""The web application: Twilio's webhooks and media socket, the operator's API and pages."""
