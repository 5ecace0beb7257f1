-- A database of schema 1 with one call in it, dumped by sqlite3's iterdump.
BEGIN TRANSACTION;
CREATE TABLE bridge_schema (
	version INTEGER NOT NULL
);
INSERT INTO "bridge_schema" VALUES(1);
CREATE TABLE calls (
	call_sid TEXT NOT NULL, 
	started_at DATETIME NOT NULL, 
	ended_at DATETIME, 
	stream_sid TEXT NOT NULL, 
	caller TEXT NOT NULL, 
	called TEXT NOT NULL, 
	direction TEXT NOT NULL, 
	agent TEXT NOT NULL, 
	seconds DOUBLE NOT NULL, 
	agent_seconds DOUBLE NOT NULL, 
	setup_seconds DOUBLE, 
	teardown_seconds DOUBLE, 
	outcome TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	transfer_to TEXT NOT NULL, 
	status TEXT NOT NULL, 
	status_sequence BIGINT NOT NULL, 
	answered_by TEXT NOT NULL, 
	cost DOUBLE, 
	dropped_bytes BIGINT NOT NULL, 
	reconnects BIGINT NOT NULL, 
	barge_ins BIGINT NOT NULL, 
	recording TEXT NOT NULL, 
	words_kept BOOLEAN NOT NULL, 
	shortened BOOLEAN NOT NULL, 
	revision BIGINT NOT NULL, 
	turns JSON NOT NULL, 
	transcript JSON NOT NULL, 
	functions JSON NOT NULL, 
	PRIMARY KEY (call_sid)
);
INSERT INTO "calls" VALUES('CA0338a6f70338a6f70338a6f70338a6f7','2026-11-28 19:32:09.550779','2026-11-28 19:32:10.634779','MZcec890b2767e9533dead71a6c93b749e','+15550100001','+15550100002','inbound','',1.084,1.064,1.68247289984719827771e-02,3.84438398759812116622e-03,'transferred','the agent called transfer_call: reception','+15551112222','',-1,'',0.001241,0,0,0,'',1,0,3,'[{"first_audio_received_at":0.021676825999747962,"first_audio_sent_at":0.02182969800196588,"heard_at":0.5391926769952988},{"caller_stopped_at":0.2607866460020887,"first_audio_received_at":0.26356007999856956,"first_audio_sent_at":0.2636512640019646,"heard_at":1.0796237489994382}]','[{"at":0.02076274700812064,"role":"agent","words":"Hello!","heard":"heard"},{"at":0.10224930099502672,"role":"agent","words":"How can I help you today?","heard":"heard"},{"at":0.2607866460020887,"words":"A person please.","heard":"heard"},{"at":0.26291672899969853,"role":"agent","words":"I connect you.","heard":"heard"}]','[{"at":0.2614358310092939,"name":"transfer_call","seconds":0.0001249089982593432,"result":"ok"}]');
CREATE INDEX ix_calls_outcome ON calls (outcome);
CREATE INDEX ix_calls_started_at ON calls (started_at);
COMMIT;
