
(async () => {
  const said = document.getElementById("said");
  const reference = location.hash.slice(1);
  // Neither the address bar nor the history keeps it.
  history.replaceState(null, "", location.pathname);
  if (!reference) {
    said.textContent = "This link has no reference behind a #: copy the whole link.";
    return;
  }
  try {
    const answer = await fetch(document.body.dataset.to, {
      headers: { Authorization: "Bearer " + reference, Accept: "application/json, text/plain" },
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
    document.getElementById("answer").textContent = await answer.text();
    said.textContent = answer.ok ? "" : "The server refuses the link (" + answer.status + ").";
  } catch {
    said.textContent = "The server can't be reached.";
  }
})();
