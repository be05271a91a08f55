// Access to the elements and templates of index.html.

export const byId = (id) => document.getElementById(id);

export const part = (parent, name) => parent.querySelector(`[data-of="${name}"]`);

export const copyOf = (template) => byId(template).content.cloneNode(true);
