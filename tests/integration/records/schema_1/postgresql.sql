-- A database of schema 1 with one call in it, dumped by pg_dump --inserts; without its settings.
CREATE TABLE bridge_schema (
    version integer NOT NULL
);
CREATE TABLE calls (
    call_sid text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    stream_sid text NOT NULL,
    caller text NOT NULL,
    called text NOT NULL,
    direction text NOT NULL,
    agent text NOT NULL,
    seconds double precision NOT NULL,
    agent_seconds double precision NOT NULL,
    setup_seconds double precision,
    teardown_seconds double precision,
    outcome text NOT NULL,
    reason text NOT NULL,
    transfer_to text NOT NULL,
    status text NOT NULL,
    status_sequence bigint NOT NULL,
    answered_by text NOT NULL,
    cost double precision,
    dropped_bytes bigint NOT NULL,
    reconnects bigint NOT NULL,
    barge_ins bigint NOT NULL,
    recording text NOT NULL,
    words_kept boolean NOT NULL,
    shortened boolean NOT NULL,
    revision bigint NOT NULL,
    turns json NOT NULL,
    transcript json NOT NULL,
    functions json NOT NULL
);
INSERT INTO bridge_schema VALUES (1);
INSERT INTO calls VALUES ('CA0338a6f70338a6f70338a6f70338a6f7', '2026-11-28 19:33:05.733957+00', '2026-11-28 19:33:06.792957+00', 'MZd9498dfd7ac2ba57ad6472f60b359246', '+15550100001', '+15550100002', 'inbound', '', 1.059, 1.042, 0.014244033984141424, 0.005599238007562235, 'transferred', 'the agent called transfer_call: reception', '+15551112222', '', -1, '', 0.001216, 0, 0, 0, '', true, false, 3, '[{"first_audio_received_at":0.01942588499514386,"first_audio_sent_at":0.019614610995631665,"heard_at":0.5740423900133464},{"caller_stopped_at":0.2585142060124781,"first_audio_received_at":0.26188812899636105,"first_audio_sent_at":0.2621438470087014,"heard_at":1.05335864200606}]', '[{"at":0.01829896101844497,"role":"agent","words":"Hello!","heard":"heard"},{"at":0.09852224501082674,"role":"agent","words":"How can I help you today?","heard":"heard"},{"at":0.2585142060124781,"words":"A person please.","heard":"heard"},{"at":0.26106721701216884,"role":"agent","words":"I connect you.","heard":"heard"}]', '[{"at":0.25936710301903076,"name":"transfer_call","seconds":0.00016953397425822914,"result":"ok"}]');
ALTER TABLE ONLY calls
    ADD CONSTRAINT calls_pkey PRIMARY KEY (call_sid);
CREATE INDEX ix_calls_outcome ON calls USING btree (outcome);
CREATE INDEX ix_calls_started_at ON calls USING btree (started_at);
