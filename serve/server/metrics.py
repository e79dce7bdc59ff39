"""Metrics for Prometheus, with the suffixes that dashboards of inference servers know."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serve.generation.results import Generation
from serve.server.models import ServedModel

PREFIX = "comp_export"
MODEL = "model_name"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class _Loads(Collector):
    """Requests that run and wait, and images that were known, read when they are asked for."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = list(models)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all models."""
        running = GaugeMetricFamily(
            f"{PREFIX}_num_requests_running", "Answers that run.", labels=[MODEL]
        )
        waiting = GaugeMetricFamily(
            f"{PREFIX}_num_requests_waiting", "Requests that wait.", labels=[MODEL]
        )
        hits = CounterMetricFamily(
            f"{PREFIX}_image_cache_hits", "Images whose features were known.", labels=[MODEL]
        )
        queries = CounterMetricFamily(
            f"{PREFIX}_image_cache_queries", "Images that came.", labels=[MODEL]
        )
        known = CounterMetricFamily(
            f"{PREFIX}_prefix_cache_hits", "Prompt tokens that were not read again.", labels=[MODEL]
        )
        asked = CounterMetricFamily(
            f"{PREFIX}_prefix_cache_queries", "Prompt tokens of such models.", labels=[MODEL]
        )
        for model in self._models:
            load = model.worker.load
            running.add_metric([model.id], load.running)
            waiting.add_metric([model.id], load.waiting)
            if model.images is not None:
                hits.add_metric([model.id], model.images.hits)
                queries.add_metric([model.id], model.images.hits + model.images.misses)
            if model.prefixes is not None:
                known.add_metric([model.id], model.prefixes.hits)
                asked.add_metric([model.id], model.prefixes.queries)
        yield from (running, waiting, hits, queries, known, asked)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Loads(models))

        def histogram(name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"{PREFIX}_{name}", words, [MODEL], registry=self.registry, buckets=buckets
            )

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", words, [MODEL, *labels], registry=self.registry)

        self._first = histogram(
            "time_to_first_token_seconds", "From the request to its first token.", SECONDS
        )
        self._each = histogram(
            "time_per_output_token_seconds", "Between tokens after the first.", STEP_SECONDS
        )
        self._whole = histogram("e2e_request_latency_seconds", "From request to end.", SECONDS)
        self._kept = histogram(
            "image_tokens_kept_ratio", "Image tokens kept at the last drop place.", RATIOS
        )
        self._prompt = counter("prompt_tokens", "Tokens of prompts, with images.")
        self._generated = counter("generation_tokens", "Tokens of answers.")
        self._success = counter("request_success", "Finished answers.", "finished_reason")
        self._failure = counter("request_failure", "Requests that ended early.", "status")

    def first_token(self, model: str, seconds: float) -> None:
        """A first token came after this time."""
        self._first.labels(model).observe(seconds)

    def finished(self, model: str, generation: Generation, first: float, whole: float) -> None:
        """An answer ended: seconds to its first token, and to its end."""
        tokens = len(generation.token_ids)
        if tokens > 1:
            self._each.labels(model).observe((whole - first) / (tokens - 1))
        self._whole.labels(model).observe(whole)
        self._prompt.labels(model).inc(generation.prompt_tokens)
        self._generated.labels(model).inc(tokens)
        self._success.labels(model, generation.finish_reason).inc()
        seen = generation.kept.seen() if generation.image_tokens else []
        if seen:
            self._kept.labels(model).observe(seen[-1][1].size / generation.image_tokens)

    def failed(self, model: str, status: int) -> None:
        """A request of a model ended with an HTTP status."""
        self._failure.labels(model, str(status)).inc()

    def text(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)
