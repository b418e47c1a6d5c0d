// The theme that was chosen, before anything is painted; settings.js has the rest.
try {
  const { theme } = JSON.parse(localStorage.getItem("kimi-offload settings"));
  document.documentElement.dataset.theme = theme;
} catch {
  // none was chosen
}
