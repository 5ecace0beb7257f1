# bridge in a container: docker build -t bridge . && docker run --env-file secrets.env -p 5000:5000 bridge
#
# The configuration is /data/config.toml; mount a volume there to bring your own. Give a container
# time to drain when it is stopped: docker run --stop-timeout 100.

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY bridge bridge
RUN python -m venv /opt/bridge
RUN /opt/bridge/bin/pip install --no-cache-dir ".[postgres,otel]"

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home --home-dir /data bridge
COPY --from=build /opt/bridge /opt/bridge
COPY config.toml /data/config.toml
USER 10001
WORKDIR /data
ENV PATH=/opt/bridge/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 5000
STOPSIGNAL SIGTERM
CMD ["bridge", "serve"]
