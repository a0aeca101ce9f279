'use strict';

// Shows the fields that belong to what is chosen, and says at once what is wrong with a path.
(function () {
  const field = (name) => document.getElementById(`batch_connect_session_context_${name}`);
  const group = (name) => field(name) && (field(name).closest('.mb-3, .form-group') || field(name).parentElement);
  const chosen = (name, otherwise) => (field(name) ? field(name).value : otherwise);

  function show(name, shown) {
    const box = group(name);
    if (box) { box.hidden = !shown; }
  }

  function check() {
    const path = field('source_path');
    if (!path) { return; }
    const text = path.value.trim();
    let wrong = '';
    if (chosen('source_kind', 'path') === 'path') {
      if (!text) {
        wrong = 'Choose a folder or a SQLite file.';
      } else if (/^https?:/.test(text)) {
        wrong = 'This is an address. Choose "My lab\'s server" for a server.';
      } else if (!/^(\/|~\/|sqlite:\/\/\/\/)/.test(text)) {
        wrong = 'Write the whole path, from / on.';
      }
    }
    path.setCustomValidity(wrong);
  }

  function update() {
    const server = chosen('source_kind', 'path') === 'server';
    show('source_path', !server);
    show('env_file', server);
    show('view_mode', !server);
    const software = chosen('software', 'venv');
    for (const name of ['module', 'venv', 'container']) { show(`software_${name}`, software === name); }
    check();
  }

  function start() {
    for (const name of ['source_kind', 'software']) {
      if (field(name)) { field(name).addEventListener('change', update); }
    }
    // the file browser sets the value without an event
    if (field('source_path')) { field('source_path').addEventListener('input', check); }
    const form = field('source_path') && field('source_path').form;
    if (form) {
      for (const button of form.querySelectorAll('[type=submit]')) { button.addEventListener('click', check); }
    }
    update();
  }

  if (document.readyState === 'loading') { document.addEventListener('DOMContentLoaded', start); } else { start(); }
}());
