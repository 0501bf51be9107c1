"""Headers of calls are known again, and no more of them than fits."""

from helpers.http2_client import INFER


def test_headers_without_a_deadline_are_kept(serve, message):
    async def test(served):
        known = served.context.known_headers
        async with served.client() as client:
            for options in ({}, {}, {"x_api_key": b"k"}, {"grpc_timeout": b"20S"}, {"x_long": b"v" * 3000}):
                answer = await client.ask(INFER, message, **options)
                assert answer.status == 0
        assert [given.known for given in known.values()] == [{}, {b"x-api-key": b"k"}]
        assert all(given.path == INFER for given in known.values())

    serve(test)


def test_refused_headers_are_refused_again(serve, message):
    async def test(served):
        async with served.client() as client:
            for _ in range(2):
                assert (await client.ask(INFER, message, grpc_encoding=b"br")).status == 12
                assert (await client.ask(INFER, message, grpc_timeout=b"x")).status == 3
        assert served.context.known_headers == {}

    serve(test)


def test_no_more_headers_are_kept_than_fit(serve, message):
    async def test(served):
        async with served.client() as client:
            for number in range(600):
                assert (await client.ask(INFER, message, x_number=b"%d" % number)).status == 0
                assert len(served.context.known_headers) <= 256

    serve(test)
