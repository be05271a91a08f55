// The templates of index.html, and the parts of what is made of them.

export const byId = (id) => document.getElementById(id);

export const part = (parent, name) => parent.querySelector(`[data-of="${name}"]`);

export const copyOf = (template) => byId(template).content.cloneNode(true);
