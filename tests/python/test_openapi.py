"""The description of classes as OpenAPI 3.1, by a validator that is not this project's."""

import json
import urllib.error
import urllib.request

from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from served import DEADLINE_SECONDS, PASSING, ServedTest


class OpenApiTest(ServedTest):
    routed = {"ChatLimiter", "ChatRoom"}

    def ask(self, path, body=None):
        """The status and the JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.http}{path}", data, kind)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused)

    def described(self, path):
        status, description = self.ask(path)
        self.assertEqual(status, 200, path)
        errors = [f"{error.json_path}: {error.message}" for error in OpenAPIV31SpecValidator(description).iter_errors()]
        self.assertEqual(errors, [], path)
        return description

    def validator(self, description, schema):
        """Of values by a schema of the description."""
        return OAS31Validator({**schema, "components": description["components"]})

    def test_every_class_is_described_as_the_standard_has_it(self):
        for name in self.namespaces:
            # Some are reached by their own routes alone.
            if name in self.routed:
                self.assertEqual(self.ask(f"/json/{name}")[0], 404)
                continue
            description = self.described(f"/json/{name}")
            self.assertEqual(description["info"]["title"], name)
            for path, item in description["paths"].items():
                self.assertTrue(path.startswith(f"/json/{name}/{{name}}/"), path)
                self.assertEqual(list(item), ["post"])

    def test_parameters_and_results_are_as_they_are_described(self):
        description = self.described("/json/Counter")
        increment = description["paths"]["/json/Counter/{name}/increment"]["post"]
        taken = self.validator(description, increment["requestBody"]["content"]["application/json"]["schema"])
        results = self.validator(description, increment["responses"]["200"]["content"]["application/json"]["schema"])
        for params in [{}, {"by": "2"}, {"by": 2}, {"by": "-9"}]:
            self.assertTrue(taken.is_valid(params), params)
            status, answer = self.ask("/json/Counter/x/increment", params)
            self.assertEqual(status, 200)
            self.assertTrue(results.is_valid(answer) and "value" in answer, answer)
        problem = increment["responses"]["default"]["content"]["application/problem+json"]["schema"]
        for params in [{"by": True}, {"by": "two"}, {"by": 1.5}, {"buy": 2}, []]:
            self.assertFalse(taken.is_valid(params), params)
            status, answer = self.ask("/json/Counter/x/increment", params)
            self.assertEqual(status, 400)
            self.assertTrue(self.validator(description, problem).is_valid(answer), answer)


class PassingTest(OpenApiTest):
    """The same for classes with lists, groups, unions and capabilities."""

    command = [PASSING, "serve", "--json-calls", "on"]
    routed = set()
